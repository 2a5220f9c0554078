"""Compact networks answer as masked ones, bit for bit or nearly so; others are refused."""

import copy

import pytest
import torch
from torch import nn

from gsdist.compaction import (
    Plan,
    count,
    coupling_of,
    cut_channels,
    max_abs_difference,
    plan_from_zeros,
    trace_channels,
    verify,
)
from gsdist.errors import ConfigError, UnsupportedSetup
from gsdist.models import build_model
from tests.workloads.pruning.networks import (
    IMAGES,
    Chain,
    Concatenated,
    Depthwise,
    Residual,
    mask_half,
    randomise_norms,
)

LAYOUTS = ("internal", "scatter", "stage")
IMAGE = 16
QUICK = (
    ("vgg16-cifar", "projection"),
    ("resnet20", "padding"),
    ("resnet20", "projection"),
    ("densenet40-cifar", "projection"),
    ("mobilenetv2-half", "projection"),
)
LARGE = (
    ("vgg13-cifar", "projection"),
    ("resnet32", "padding"),
    ("resnet56", "padding"),
    ("resnet56", "projection"),
    ("resnet110", "padding"),
    ("preresnet164", "projection"),
    ("wrn-16-1", "projection"),
    ("mobilenet_v2", "projection"),
    ("resnet34", "projection"),
    ("resnet50", "projection"),
)
NETWORKS = [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in LARGE)]


def network(name, shortcut):
    torch.manual_seed(0)
    model = build_model(name, num_classes=10, shortcut=shortcut)
    randomise_norms(model)
    size = 32 if name in ("resnet34", "resnet50", "mobilenet_v2") else IMAGE
    return model, (torch.randn(1, 3, size, size),)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "shortcut"), NETWORKS)
def test_compact_networks_answer_as_masked_ones(name, shortcut, layout):
    masked, images = network(name, shortcut)
    dense = copy.deepcopy(masked)
    graph = trace_channels(masked, images)
    groups = graph.channel_groups(coupling_of(layout))
    kept = mask_half(masked, groups)
    compact = cut_channels(masked, graph, plan_from_zeros(masked, graph, layout))
    assert verify(masked, compact.model, images) < 1e-12
    assert max_abs_difference(dense, masked, images) > 1e-3
    left = count(graph, groups, kept, shrink_residual=layout != "internal")
    assert left.parameters == sum(p.numel() for p in compact.model.parameters())
    assert left.macs < 0.65 * count(graph, groups).macs
    if layout != "scatter":  # whose sums are restored in a way that is not traced again
        assert count(trace_channels(compact.model, images), []) == left


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [Chain, Residual, Concatenated, Depthwise])
def test_small_structures(kind, layout):
    torch.manual_seed(1)
    masked = kind()
    randomise_norms(masked)
    graph = trace_channels(masked, (IMAGES,))
    mask_half(masked, graph.channel_groups(coupling_of(layout)))
    compact = cut_channels(masked, graph, plan_from_zeros(masked, graph, layout)).model
    assert verify(masked, compact, (IMAGES,)) < 1e-12
    assert sum(p.numel() for p in compact.parameters()) < sum(
        p.numel() for p in masked.parameters()
    )


@pytest.mark.parametrize("name", ["vgg16-cifar", "resnet20", "densenet40-cifar"])
def test_masks_without_the_norms_are_found_out(name):
    masked, images = network(name, "projection")
    graph = trace_channels(masked, images)
    groups = graph.channel_groups()
    kept = mask_half(masked, groups, norms=False)
    found = plan_from_zeros(masked, graph, "scatter").kept
    assert not any(group.of_role("norm") for group in groups if group.name in found)
    plan = Plan(
        layout="scatter",
        kept={name: tuple(keep.nonzero()[:, 0].tolist()) for name, keep in kept.items()},
    )
    compact = cut_channels(masked, graph, plan).model
    assert max_abs_difference(masked, compact, images) > 1e-2
    with pytest.raises(UnsupportedSetup, match="mask scale and shift"):
        verify(masked, compact, images)


class Shuffled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.next = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, images):
        features = self.conv(images)
        batch, _, height, width = features.shape
        halves = features.view(batch, 2, 4, height, width).transpose(1, 2)
        return self.next(halves.reshape(batch, 8, height, width)).mean((2, 3))


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (Shuffled, "view"),
        (lambda: nn.Sequential(nn.Conv2d(1, 8, 1), nn.GroupNorm(2, 8)), "GroupNorm"),
        (lambda: nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 1, groups=2)), "2 groups"),
        (lambda: nn.Sequential(nn.Conv2d(1, 8, 1), nn.Sigmoid()), "Sigmoid"),
        (lambda: nn.Sequential(*[nn.Conv2d(1, 1, 1)] * 2), "twice"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(build, named):
    with pytest.raises(UnsupportedSetup, match=named):
        trace_channels(build(), (IMAGES,))


@pytest.mark.parametrize("name", ["shufflenetv1", "shufflenetv2"])
def test_shufflenets_are_refused(name):
    model = build_model(name, num_classes=10)
    with pytest.raises(UnsupportedSetup, match=r"stages_0|view"):
        trace_channels(model, (torch.zeros(1, 3, 32, 32),))


def test_tracing_leaves_mode_and_statistics_alone():
    model = Chain().train()
    before = copy.deepcopy(model.state_dict())
    trace_channels(model, (IMAGES,))
    assert model.training and all(m.training for m in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_plans_of_other_networks_are_refused():
    graph = trace_channels(Chain(), (IMAGES,))
    for kept in ({"features.0": (0, 8)}, {"nowhere": (0,)}):
        with pytest.raises(ConfigError, match="another network"):
            cut_channels(Chain(), graph, Plan(layout="internal", kept=kept))
    for kept in ((), (1, 0), (2, 2)):
        with pytest.raises(ConfigError, match="at least one"):
            Plan(layout="internal", kept={"features.0": kept})
    with pytest.raises(ConfigError, match="layout must be one of"):
        Plan(layout="smallest", kept={})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_next_step_of_a_compact_network_is_that_of_the_masked_one(layout):
    """Hard masks, momentum and weight decay: cutting changes nothing of what follows."""
    torch.manual_seed(2)
    masked = build_model("resnet8", num_classes=10, in_channels=1, shortcut="padding").double()
    images = torch.randn(8, 1, 16, 16, dtype=torch.float64)
    labels = torch.randint(10, (8,))
    graph = trace_channels(masked, (images,))
    groups = graph.channel_groups(coupling_of(layout))
    if layout == "internal":
        groups = [group for group in groups if not group.residual]
    kept = mask_half(masked, groups)
    parameters = dict(masked.named_parameters())
    trained = {name: torch.ones_like(parameter) for name, parameter in parameters.items()}
    for group in groups:
        for part in group.of_role("out", "norm"):
            rows = part.positions_of(~kept[group.name])
            for kind, _ in masked.get_submodule(part.module).named_parameters():
                trained[f"{part.module}.{kind}"][rows] = 0
    optimizer = torch.optim.SGD(masked.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for name, parameter in parameters.items():
        momentum = torch.randn_like(parameter) * trained[name]
        optimizer.state[parameter]["momentum_buffer"] = momentum
    compact = cut_channels(masked, graph, plan_from_zeros(masked, graph, layout))
    small = torch.optim.SGD(compact.model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)

    def cut(tensor, name):
        for dimension, index in enumerate(compact.kept[name]):
            tensor = tensor if index is None else tensor.index_select(dimension, index)
        return tensor.clone()

    for name, parameter in compact.model.named_parameters():
        momentum = optimizer.state[parameters[name]]["momentum_buffer"]
        small.state[parameter]["momentum_buffer"] = cut(momentum, name)
    nn.functional.cross_entropy(masked(images), labels).backward()
    for name, parameter in parameters.items():
        parameter.grad.mul_(trained[name])
    optimizer.step()
    nn.functional.cross_entropy(compact.model(images), labels).backward()
    small.step()
    for name, parameter in compact.model.named_parameters():
        torch.testing.assert_close(parameter, cut(parameters[name], name), rtol=0, atol=1e-10)
