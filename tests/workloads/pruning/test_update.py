"""What one decision does to the weights, and what training makes of that."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gsdist.errors import ConfigError, UnsupportedSetup
from gsdist.models import build_model
from gsdist.workloads.pruning import PRESETS, Pruner, PruningConfig
from tests.workloads.pruning.networks import IMAGES, Chain

EPOCHS, STEPS = 4, 3
SGD = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-3}


def data(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 1, 4, 4, generator=generator), torch.randint(
        3, (16,), generator=generator
    )


def train(config, *, model=None, epochs=EPOCHS, after_epoch=None):
    """Train the chain in a loop of one's own, as the pruner's module shows."""
    torch.manual_seed(3)
    model = model or Chain()
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    pruner = Pruner(model, (IMAGES,), config, total_events=epochs)
    pruner.on_train_begin()
    for epoch in range(epochs):
        for step in range(STEPS):
            images, labels = data(epoch * STEPS + step)
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            pruner.before_reduce()
            optimizer.step()
        pruner.on_epoch_end(epoch, optimizer)
        if after_epoch is not None:
            after_epoch(epoch, model, pruner)
    return model, pruner


def zero_filters(conv):
    return (conv.weight.flatten(1) == 0).all(1)


def one_event(config, event=0, total=100):
    torch.manual_seed(1)
    model = Chain()
    before = copy.deepcopy(model)
    pruner = Pruner(model, (IMAGES,), config, total_events=total)
    pruner.on_epoch_end(event)
    return before.features, model.features, pruner


def test_kept_filters_keep_their_bits_soft_ones_shrink_exactly_hard_ones_are_zero():
    # Of 8 filters 4 are pruned, of which the lower 2 hard; softness in the middle of its schedule.
    config = PruningConfig(rate=0.5, softness=1.0, hard_share=0.5)
    before, after, pruner = one_event(config, event=10)
    softness = pruner.measures()["softness"]
    assert 0.2 < softness < 0.5
    order = before[0].weight.double().flatten(1).norm(dim=1).argsort()
    for kind in ("weight", "bias"):
        old, new = getattr(before[1], kind), getattr(after[1], kind)
        assert torch.equal(new[order[2:4]], (old[order[2:4]].double() * softness).float())
        assert torch.equal(new[order[4:]], old[order[4:]])
    old, new = before[0].weight, after[0].weight
    assert torch.equal(new[order[4:]], old[order[4:]])
    assert torch.equal(new[order[2:4]], old[order[2:4]] * torch.tensor(softness).float())
    assert not new[order[:2]].any() and not after[1].weight[order[:2]].any()


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.4, 0.6, 0.9])
def test_every_layer_loses_exactly_its_share(rate):
    _, after, _ = one_event(PruningConfig(rate=rate), event=99)
    for conv in (after[0], after[3], after[6]):
        assert int(zero_filters(conv).sum()) == int(len(conv.weight) * rate + 1e-9)


def test_a_fifth_of_a_hundred_filters_is_twenty():
    model = nn.Sequential(nn.Conv2d(1, 100, 1), nn.Flatten(), nn.Linear(1600, 2))
    Pruner(model, (IMAGES,), PruningConfig(rate=0.2), total_events=1).on_epoch_end(0)
    assert int(zero_filters(model[0]).sum()) == 20


def test_no_layer_loses_all():
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten(), nn.Linear(48, 2))
    config = PruningConfig(rate=0.99, scope="global", min_keep=0.0)
    Pruner(model, (IMAGES,), config, total_events=1).on_epoch_end(0)
    assert int(zero_filters(model[0]).sum()) == 2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (replace(PRESETS["srfp"], softness=0.0), PRESETS["sfp"]),
        (replace(PRESETS["asrfp"], softness=0.0), PRESETS["asfp"]),
        (replace(PRESETS["ghfp"], hard_share=0.0), PRESETS["asrfp"]),
        (
            replace(
                PRESETS["ghfp"], softness=0.0, hard_schedule="constant", rate_schedule="constant"
            ),
            PRESETS["hfp"],
        ),
    ],
    ids=["srfp is sfp", "asrfp is asfp", "ghfp is its base", "ghfp is hfp"],
)
def test_methods_that_are_the_same_take_the_same_course(first, second):
    one, other = train(first)[0].state_dict(), train(second)[0].state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    third = train(replace(second, rate=0.7))[0].state_dict()
    assert any(not torch.equal(one[name], third[name]) for name in one)


def test_hard_filters_stay_zero_and_soft_ones_come_back():
    hard = {}

    def stays(epoch, model, pruner):
        mask = pruner.coordinate_mask["features.0.weight"]
        hard[epoch] = (~mask).flatten(1).all(1)
        assert torch.equal(hard[epoch], zero_filters(model.features[0]))

    train(PRESETS["hfp"], after_epoch=stays)
    assert all(torch.equal(mask, hard[0]) for mask in hard.values()) and hard[0].sum() == 3

    model, _ = train(replace(PRESETS["sfp"], rate=0.5))
    zero = zero_filters(model.features[0])
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    # Momentum is what brings them back: under a zero scale there is no gradient.
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.full_like(parameter, 0.01)
    images, labels = data(0)
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
    assert zero.sum() == 4 and not zero_filters(model.features[0]).any()


def test_masks_before_the_first_step_kill_filters_of_a_fresh_network_for_good():
    # A mask that comes after some training does not: their momentum brings them back.
    def dead(at_begin):
        torch.manual_seed(0)
        model = build_model("resnet8-narrow", num_classes=3, in_channels=1)
        config = PruningConfig(rate=0.5, mask_at_begin=at_begin)
        pruner = Pruner(model, (torch.zeros(2, 1, 8, 8),), config, total_events=9)
        optimizer = torch.optim.SGD(model.parameters(), **SGD)
        pruner.on_train_begin()
        for step in range(10):
            if step == 5 and not at_begin:
                pruner.on_epoch_end(0, optimizer)
            images = torch.randn(16, 1, 8, 8)
            optimizer.zero_grad()
            F.cross_entropy(model(images), torch.randint(3, (16,))).backward()
            optimizer.step()
        inner = [m for name, m in model.named_modules() if name.endswith("conv1")]
        return sum(int(zero_filters(conv).sum()) for conv in inner)

    assert dead(True) == (4 + 8 + 16) // 2
    assert dead(False) == 0


@pytest.mark.parametrize("decides", ["sgd", "adamw"])
def test_the_optimizers_state_of_hard_filters_is_cleared(decides):
    torch.manual_seed(0)
    model = Chain()
    kind = torch.optim.SGD if decides == "sgd" else torch.optim.AdamW
    optimizer = kind(model.parameters(), lr=0.1, **({"momentum": 0.9} if decides == "sgd" else {}))
    F.cross_entropy(model(data(0)[0]), data(0)[1]).backward()
    optimizer.step()
    pruner = Pruner(model, (IMAGES,), PRESETS["hfp"], total_events=2)
    pruner.on_epoch_end(0, optimizer)
    weight = model.features[3].weight
    trained = pruner.coordinate_mask["features.3.weight"]
    for value in optimizer.state[weight].values():
        if value.shape == weight.shape:
            assert not value[~trained].any() and value[trained].any()


@pytest.mark.parametrize("method", ["srfp", "asrfp"])
def test_single_weights_are_pruned_by_the_same_rule(method):
    config = replace(PRESETS[method], granularity="weight", rate=0.5)
    model, pruner = train(config)
    for place in (0, 3, 6):
        weight = model.features[place].weight
        assert int((weight == 0).sum()) == weight.numel() // 2
    assert pruner.counts()[0].parameters - pruner.counts()[1].parameters == (72 + 432 + 540) // 2
    with pytest.raises(ConfigError, match="only filters"):
        pruner.compact()


@pytest.mark.parametrize("rate", [0.3, 0.5])
@pytest.mark.parametrize("target", ["macs", "parameters"])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_targets_are_just_met_on_exact_counts(scope, target, rate):
    torch.manual_seed(0)
    model = build_model("resnet20", num_classes=10, shortcut="padding")
    images = (torch.randn(1, 3, 32, 32),)
    config = PruningConfig(rate=rate, target=target, scope=scope, layout="internal")
    pruner = Pruner(model, images, config, total_events=1)
    pruner.on_epoch_end(0)
    dense, left = pruner.counts()
    name = "macs" if target == "macs" else "parameters"
    # Narrow layers of the local scope all lose their next filter at once.
    slack = 0.005 if scope == "global" else 0.06
    assert 1 - rate - slack <= getattr(left, name) / getattr(dense, name) <= 1 - rate


def test_a_target_out_of_reach_is_refused():
    model = build_model("resnet8", num_classes=10)
    config = PruningConfig(rate=0.9, target="macs", scope="global", layout="internal")
    pruner = Pruner(model, (torch.randn(1, 3, 32, 32),), config, total_events=1)
    with pytest.raises(ConfigError, match=r"cannot be removed.*lower rate"):
        pruner.on_epoch_end(0)


def test_state_goes_on_with_the_same_masks():
    _, pruner = train(PRESETS["hfp"], epochs=2)
    other = Pruner(Chain(), (IMAGES,), PRESETS["hfp"], total_events=2)
    other.load_state_dict(pruner.state_dict())
    assert other.fingerprint() == pruner.fingerprint()
    for name, mask in pruner.coordinate_mask.items():
        assert torch.equal(mask, other.coordinate_mask[name])
    with pytest.raises(ConfigError, match="24 candidates"):
        larger = build_model("resnet8", num_classes=3, in_channels=1)
        Pruner(larger, (IMAGES,), PRESETS["hfp"], total_events=2).load_state_dict(
            pruner.state_dict()
        )


def test_networks_without_convolutions_are_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(UnsupportedSetup, match="no convolution"):
        Pruner(model, (IMAGES,), PRESETS["sfp"], total_events=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate": 0.0},
        {"criterion": "best"},
        {"softness": 2.0},
        {"granularity": "weight", "criterion": "fpgm"},
        {"compact_at": 0.5},
        {"select_once": True},
    ],
)
def test_settings_without_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(reversed(wrong)) if len(wrong) == 1 else None):
        PruningConfig(**wrong)
