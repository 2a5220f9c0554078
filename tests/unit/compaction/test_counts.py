"""Counts against published integers and formulas."""

import pytest
import torch

from gsdist.compaction import count, trace_channels
from gsdist.models import build_model

CIFAR, IMAGENET = (3, 32, 32), (3, 224, 224)
DEPTHS = (20, 32, 56, 110)


def traced(name, image=CIFAR, num_classes=10, shortcut="projection"):
    model = build_model(name, num_classes=num_classes, shortcut=shortcut)
    return model, trace_channels(model, (torch.zeros(1, *image),))


# Multiply-accumulates and parameters in millions; of the tables of pruning papers those with two
# operations per element of a normalisation.
@pytest.mark.parametrize(
    ("name", "num_classes", "shortcut", "macs", "with_norm", "parameters"),
    [
        ("vgg16-cifar", 10, "projection", 313.20, 313.75, 14.724),
        ("resnet20", 10, "padding", 40.55, None, 0.2697),
        ("resnet32", 10, "padding", 68.86, None, 0.4642),
        ("resnet56", 10, "padding", 125.49, 126.55, 0.8530),
        ("resnet110", 10, "padding", 252.89, None, 1.7280),
        ("densenet40-cifar", 10, "projection", 282.92, None, 1.0593),
        ("densenet40-cifar", 100, "projection", None, 287.75, None),
        ("preresnet164", 10, "projection", 247.65, None, 1.7033),
        ("preresnet164", 100, "projection", None, 253.97, None),
    ],
)
def test_dense_networks_cost_what_is_published(
    name, num_classes, shortcut, macs, with_norm, parameters
):
    model, graph = traced(name, num_classes=num_classes, shortcut=shortcut)
    counts = count(graph, [])
    assert counts.parameters == sum(p.numel() for p in model.parameters())
    if macs is not None:
        assert round(counts.macs / 1e6, 2) == macs
    if with_norm is not None:
        assert round(counts.macs_with_norm / 1e6, 2) == with_norm
    if parameters is not None:
        assert round(counts.parameters / 1e6, 3 if parameters > 2 else 4) == parameters


# torchvision's own figures of its models, conv and linear layers alone.
@pytest.mark.parametrize(
    ("name", "giga"), [("resnet34", 3.664), ("resnet50", 4.089), ("mobilenet_v2", 0.301)]
)
def test_torchvision_networks_cost_what_torchvision_says(name, giga):
    _, graph = traced(name, IMAGENET, 1000)
    assert round(count(graph, []).macs / 1e9, 3) == giga


# Percent by which multiply-accumulates fall when all convolutions keep this share of their filters.
@pytest.mark.parametrize(
    ("keep", "scatter", "internal"),
    [
        (0.9, (12.2, 12.2), (8.2, 8.3)),
        (0.8, (26.4, 26.7), (18.5, 18.7)),
        (0.7, (37.6, 37.9), (27.2, 27.5)),
        (0.6, (49.9, 50.3), (37.6, 38.0)),
        (0.5, (62.6, 63.1), (49.5, 49.9)),
        (0.4, (70.6, 71.0), (57.6, 58.2)),
    ],
)
def test_pruned_resnets_cost_what_the_specification_says(keep, scatter, internal):
    for depth in DEPTHS:
        _, graph = traced(f"resnet{depth}", shortcut="padding")
        groups = graph.channel_groups()
        dense = count(graph, groups).macs
        kept = {
            group.name: torch.arange(group.size) >= int(group.size * (1 - keep) + 1e-9)
            for group in groups
        }
        for shrink, (low, high) in ((True, scatter), (False, internal)):
            left = count(graph, groups, kept, shrink_residual=shrink).macs
            assert low - 0.06 <= 100 * (1 - left / dense) <= high + 0.06


@pytest.mark.parametrize(
    ("keep", "published"),
    [
        (0.9, (15.2, 14.9, 14.7, 14.6)),
        (0.8, (29.3, 28.8, 28.4, 28.2)),
        (0.7, (42.2, 41.5, 41.1, 40.8)),
        (0.6, (54.0, 53.2, 52.6, 52.3)),
        (0.5, (64.6, 63.7, 63.2, 62.8)),
    ],
)
def test_published_percentages_are_those_of_real_widths(keep, published):
    """SFP's percentages take widths for real numbers and leave the classifier out."""
    for depth, percent in zip(DEPTHS, published, strict=True):
        _, graph = traced(f"resnet{depth}", shortcut="padding")
        dense = pruned = 0.0
        for layer in graph.layers.values():
            if layer.role == "out" and layer.name != "classifier":
                macs = layer.out_channels * layer.in_channels * layer.kernel * layer.positions
                # What a block's first convolution, and the one behind the stem, reads stays wide or not.
                reads_pruned = layer.name.endswith("conv2") or layer.name == "stages.0.0.conv1"
                dense += macs
                pruned += macs * (keep * keep if reads_pruned else keep)
        assert 100 * (1 - pruned / dense) == pytest.approx(percent, abs=0.06)


@pytest.mark.parametrize(
    ("rate", "percent"),
    [(0.3, 50.5), (0.4, 63.5), (0.5, 74.9), (0.6, 83.6), (0.7, 90.7), (0.8, 95.8)],
)
def test_uniformly_pruned_vgg_costs_what_the_specification_says(rate, percent):
    _, graph = traced("vgg16-cifar")
    groups = graph.channel_groups()
    kept = {g.name: torch.arange(g.size) >= int(g.size * rate + 1e-9) for g in groups}
    dense, left = count(graph, groups), count(graph, groups, kept)
    assert 100 * (1 - left.macs / dense.macs) == pytest.approx(percent, abs=0.06)
    assert 100 * (1 - left.parameters / dense.parameters) == pytest.approx(percent, abs=0.35)
