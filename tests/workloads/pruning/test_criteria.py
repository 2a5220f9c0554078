"""Criteria against values worked out by hand, and the two reconstructed methods."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from gsdist.compaction import count, trace_channels
from gsdist.errors import ConfigError
from gsdist.models import build_model
from gsdist.workloads.pruning import PRESETS, Pruner, PruningConfig
from gsdist.workloads.pruning.cpmc import savings
from gsdist.workloads.pruning.criterion import scores_of
from gsdist.workloads.pruning.pfgdf import closeness, kept_share, search_intervals
from gsdist.workloads.pruning.sensitivity import sensitivity
from gsdist.workloads.pruning.units import units_of
from tests.workloads.pruning.networks import (
    IMAGES,
    Chain,
    Concatenated,
    Depthwise,
    Residual,
)


def scores(model, config, images=IMAGES):
    graph = trace_channels(model, (images,))
    return scores_of(model, graph, units_of(model, graph, config), config)


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        ("l1", [3.0, 7.0, 0.0]),
        ("l2", [5**0.5, 5.0, 0.0]),
        ("fpgm", [2 * 2**0.5 + 5**0.5, 2 * 2**0.5 + 5.0, 5**0.5 + 5.0]),
        ("scale", [2.0, 1.0, 3.0]),
    ],
)
def test_scores_worked_out_by_hand(criterion, expected):
    model = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3), nn.Conv2d(3, 1, 1))
    with torch.no_grad():
        model[0].weight.copy_(
            torch.tensor([[1.0, -2.0], [3.0, -4.0], [0.0, 0.0]])[:, :, None, None]
        )
        model[1].weight.copy_(torch.tensor([-2.0, 1.0, 3.0]))
    found = scores(model, PruningConfig(criterion=criterion), torch.zeros(1, 2, 4, 4))
    torch.testing.assert_close(found[0], torch.tensor(expected, dtype=torch.float64))


def test_equal_filters_are_nearest_to_each_other():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3, bias=False), nn.Conv2d(6, 1, 1))
    with torch.no_grad():
        model[0].weight[[1, 4]] = model[0].weight.mean(0)
    found = scores(model, PruningConfig(criterion="fpgm"))[0]
    assert sorted(found.argsort()[:2].tolist()) == [1, 4] and found[1] == found[4]


def test_filters_added_up_are_scored_together():
    torch.manual_seed(0)
    model = Residual()
    found = scores(model, PruningConfig(layout="stage"))[0]
    expected = sum(c.weight.double().square().sum((1, 2, 3)) for c in (model.stem, model.last))
    torch.testing.assert_close(found, expected.sqrt())


# ---- CPMC --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["internal", "scatter", "stage"])
@pytest.mark.parametrize("kind", [Chain, Residual, Concatenated, Depthwise])
def test_savings_are_what_one_channel_less_really_saves(kind, layout):
    torch.manual_seed(0)
    model = kind()
    graph = trace_channels(model, (IMAGES,))
    groups = graph.channel_groups("stage" if layout == "stage" else "layer")
    dense = count(graph, groups)
    for group in groups:
        if group.residual and layout == "internal":
            continue
        found = savings(model, graph, group)
        for channel in range(group.size):
            keep = torch.ones(group.size, dtype=torch.bool)
            keep[channel] = False
            left = count(graph, groups, {group.name: keep})
            assert found.macs[channel] == dense.macs - left.macs
            assert found.parameters[channel] == dense.parameters - left.parameters


def test_the_value_is_that_of_the_filter_and_of_all_its_readers():
    torch.manual_seed(0)
    model = Chain()
    graph = trace_channels(model, (IMAGES,))
    first, _, last = graph.channel_groups()
    features = model.features
    made = features[0].weight.abs().sum((1, 2, 3)) + features[3].weight.abs().sum((0, 2, 3))
    torch.testing.assert_close(savings(model, graph, first).value.float(), made)
    read = model.classifier.weight.abs().view(3, 10, 16).sum((0, 2))
    made = features[6].weight.abs().sum((1, 2, 3)) + read
    torch.testing.assert_close(savings(model, graph, last).value.float(), made)


def test_ranking_depends_neither_on_order_nor_on_scale():
    torch.manual_seed(0)
    model, permuted = Chain(), Chain()
    order = torch.randperm(6)
    state = model.state_dict()
    for name in ("3.weight", "4.weight", "4.bias", "4.running_mean", "4.running_var"):
        state[f"features.{name}"] = state[f"features.{name}"][order]
    state["features.6.weight"] = state["features.6.weight"][:, order]
    permuted.load_state_dict(state)
    before = scores(model, PRESETS["cpmc"])
    after = scores(permuted, PRESETS["cpmc"])
    torch.testing.assert_close(after[1], before[1][order])
    torch.testing.assert_close(after[0], before[0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(7.5)
    scaled = torch.cat(scores(model, PRESETS["cpmc"]))
    assert torch.equal(scaled.argsort(), torch.cat(before).argsort())


# ---- PFGDF -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [0.43, 0.76, 1.0, 2.0])
def test_the_kept_share_of_normal_filters_is_that_of_the_normal_distribution(interval):
    norms = torch.randn(100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    near = closeness(3.0 + 0.5 * norms, "both") >= -interval
    assert float(near.double().mean()) == pytest.approx(math.erf(interval / 2**0.5), abs=0.01)
    assert kept_share(interval) == pytest.approx(float(near.double().mean()), abs=0.01)


def test_published_shares_follow_from_their_intervals():
    assert kept_share(0.43) == pytest.approx(0.334, abs=0.005)  # VGG-16 keeps 33.4 %
    assert kept_share(0.76) == pytest.approx(0.555, abs=0.005)  # ResNet-32, of internal channels


def test_both_tails_go_or_the_low_one():
    norms = torch.tensor([1.0, 5.0, 6.0, 7.0, 11.0], dtype=torch.float64)
    both, low = closeness(norms, "both"), closeness(norms, "low")
    assert set(both.argsort()[:2].tolist()) == {0, 4} and both[2] == both.max()
    assert low.argsort()[0] == 0 and low[3] == low[4] == 0
    assert (both >= -1e9).all(), "an endless interval keeps all"


def test_pfgdf_on_resnet_32_saves_what_is_published():
    torch.manual_seed(0)
    model = build_model("resnet32", num_classes=10, shortcut="padding")
    config = replace(PRESETS["pfgdf"], rate=249 / 560, min_keep=0.0)
    pruner = Pruner(model, (torch.zeros(1, 3, 32, 32),), config, total_events=1)
    pruner.on_train_begin()
    kept = pruner.kept()
    assert sum(len(keep) for keep in kept.values()) == 560
    assert sum(int((~keep).sum()) for keep in kept.values()) == 249

    # Spread evenly, as 44.5 % of each layer, they save what the abstract says.
    graph = trace_channels(model, (torch.zeros(1, 3, 32, 32),))
    groups = [group for group in graph.channel_groups() if not group.residual]
    gone = dict(zip((g.name for g in groups), [7] * 5 + [14] * 5 + [29] * 4 + [28], strict=True))
    assert sum(gone.values()) == 249
    even = {g.name: torch.arange(g.size) >= gone[g.name] for g in groups}
    dense, left = count(graph, groups), count(graph, groups, even)
    assert 100 * (1 - left.macs / dense.macs) == pytest.approx(43.5, abs=1.5)
    assert 100 * (1 - left.parameters / dense.parameters) == pytest.approx(43.5, abs=1.5)


def test_pfgdf_on_vgg_16_keeps_as_many_filters_as_is_published():
    torch.manual_seed(0)
    model = build_model("vgg16-cifar", num_classes=10)
    config = replace(PRESETS["pfgdf"], rate=0.6662, min_keep=0.0)
    pruner = Pruner(model, (torch.zeros(1, 3, 16, 16),), config, total_events=1)
    pruner.on_train_begin()
    kept = pruner.kept().values()
    assert sum(len(keep) for keep in kept) == 4224
    assert sum(int(keep.sum()) for keep in kept) == 1410


def test_the_search_takes_the_smallest_interval_that_keeps_the_accuracy():
    needed = {"first": 0.5, "second": 3.0, "third": 0.2}
    asked = []

    def accuracy_with(intervals):
        asked.append(dict(intervals))
        return float(all(value >= needed[name] for name, value in intervals.items()))

    assert search_intervals(list(needed), accuracy_with, least=1.0) == {"first": 0.5, "third": 0.2}
    assert asked[0] == {"first": 0.2} and {"first": 0.5, "second": 2.0} in asked


def test_intervals_name_the_layers_that_are_pruned_and_how_far():
    model = Chain()
    with torch.no_grad():
        # Norms 1, 2, 3 and 10, each twice: mean 4 and deviation 3.54; 10 is 1.7 deviations away, 1 is 0.85.
        weight = model.features[0].weight
        sizes = torch.tensor([1.0, 2.0, 3.0, 10.0] * 2) / weight[0].numel()
        weight.copy_(sizes.view(8, 1, 1, 1).expand_as(weight))
    config = replace(PRESETS["pfgdf"], intervals=("features.0=1.5",))

    def kept(config):
        pruner = Pruner(model, (IMAGES,), config, total_events=1)
        pruner.on_train_begin()
        return {name: keep.tolist() for name, keep in pruner.kept().items()}

    first = kept(config)
    assert first.pop("features.0") == [True, True, True, False] * 2
    assert all(all(keep) for keep in first.values())
    # What is zero has been pruned before: nothing is measured anew around the others' mean.
    assert (
        kept(replace(config, intervals=("features.0=0.1",)))["features.0"]
        == [True, True, True, False] * 2
    )
    with pytest.raises(ConfigError, match=r"names features\.1; .* are features\.0, features\.3"):
        kept(replace(config, intervals=("features.1=1",)))


@pytest.mark.parametrize("entries", [("0.5",), ("a=zero",), ("a=-1",), ("a=1", "a=2"), ("a=nan",)])
def test_intervals_of_another_form_are_refused(entries):
    with pytest.raises(ConfigError, match="LAYER=DEVIATIONS"):
        replace(PRESETS["pfgdf"], intervals=entries)
    with pytest.raises(ConfigError, match="gaussian"):
        PruningConfig(intervals=("a=1",))


def test_the_sensitivity_of_a_layer_is_what_pruning_it_alone_loses():
    torch.manual_seed(0)
    model = Chain()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def zeros(network):
        return -float(sum((p == 0).sum() for n, p in network.named_parameters() if p.ndim == 4))

    lost = sensitivity(model, (IMAGES,), PruningConfig(rate=0.5), zeros)
    assert lost == {"features.0": 4 * 9.0, "features.3": 3 * 8 * 9.0, "features.6": 5 * 6 * 9.0}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
