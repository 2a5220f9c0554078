"""Networks that show their stages: published sizes and shapes of taps and branches, and what is frozen."""

import copy

import pytest
import torch
from torch import nn

from gsdist.errors import ConfigError
from gsdist.models import build_model, build_staged_model, check_staged_model
from gsdist.models.branches import BranchedNetwork

# Backbone, branches, and (channels, height) of the taps: from HSAKD's reference modules, N = 100 or 1000.
PUBLISHED = {
    "resnet20": (278_324, 762_992, [(16, 32), (32, 16), (64, 8)]),
    "resnet56": (861_620, 2_206_064, [(16, 32), (32, 16), (64, 8)]),
    "resnet8x4": (1_233_540, 3_557_296, [(64, 32), (128, 16), (256, 8)]),
    "resnet32x4": (7_433_860, 18_907_056, [(64, 32), (128, 16), (256, 8)]),
    "wrn-16-2": (703_284, 1_928_304, [(32, 32), (64, 16), (128, 8)]),
    "wrn-40-1": (569_780, 1_484_432, [(16, 32), (32, 16), (64, 8)]),
    "wrn-40-2": (2_255_156, 5_769_328, [(32, 32), (64, 16), (128, 8)]),
    "vgg13-cifar": (9_462_180, 37_049_664, [(64, 32), (128, 16), (256, 8), (512, 4)]),
    "mobilenetv2-half": (812_836, 4_671_496, [(12, 32), (16, 16), (48, 8), (160, 4)]),
    "shufflenetv1": (949_258, 3_118_740, [(240, 16), (480, 8), (960, 4)]),
    "shufflenetv2": (1_355_528, 4_519_988, [(116, 16), (232, 8), (464, 4)]),
    "resnet50-cifar": (23_705_252, 76_976_704, [(256, 32), (512, 16), (1024, 8), (2048, 4)]),
    "resnet18": (11_689_512, 47_555_456, [(64, 56), (128, 28), (256, 14), (512, 7)]),
    "resnet34": (21_797_672, 76_474_240, [(64, 56), (128, 28), (256, 14), (512, 7)]),
}


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_taps_and_branches_are_the_published_ones(name):
    backbone_size, branch_size, taps = PUBLISHED[name]
    classes, size = (1000, 224) if name in ("resnet18", "resnet34") else (100, 32)
    with torch.device("meta"):
        model = BranchedNetwork(build_staged_model(name, num_classes=classes), 4 * classes)
        images = torch.empty(2, 3, size, size)
        shown = [tuple(tap.shape) for tap in model.backbone.taps(images)]
        answer = model(images)
    assert _count(model.backbone) == backbone_size
    assert _count(model.branches) == branch_size
    assert shown == [(2, channels, height, height) for channels, height in taps]
    assert answer.logits.shape == (2, classes)
    assert [branch.shape for branch in answer.branches] == [(2, 4 * classes)] * len(taps)


# Half of what MCL publishes for two peers.
@pytest.mark.parametrize(
    ("name", "expected"),
    [("shufflenetv2-stem3", 1_356_104), ("shufflenetv2-half-stem3", 444_292)],
)
def test_shufflenets_of_mcl_have_a_larger_stem(name, expected):
    with torch.device("meta"):
        assert _count(build_model(name, num_classes=100)) == expected


def test_stem_of_stride_2_halves_every_tap_and_adds_no_parameters():
    with torch.device("meta"):
        model = build_staged_model("mobilenetv2-half-stride2", num_classes=100)
        taps = model.taps(torch.empty(1, 3, 32, 32))
    assert _count(model) == PUBLISHED["mobilenetv2-half"][0]
    assert [tap.shape[-1] for tap in taps] == [16, 8, 4, 2]


@pytest.mark.parametrize("name", ["resnet8", "wrn-10-1", "mobilenetv2-half", "shufflenetv2"])
def test_the_forward_pass_is_the_last_tap_classified(name):
    model = build_staged_model(name, num_classes=5, in_channels=1).eval()
    images = torch.randn(2, 1, 16, 16)
    taps = model.taps(images)
    torch.testing.assert_close(model(images), model.classifier(model.embed(taps[-1])))


def test_a_torchvision_resnet_keeps_its_weights():
    torch.manual_seed(0)
    plain = build_model("resnet18", num_classes=3).eval()
    torch.manual_seed(0)
    staged = build_staged_model("resnet18", num_classes=3).eval()
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(plain(images), staged(images))


def test_branches_share_no_weight_with_the_network():
    model = BranchedNetwork(build_staged_model("resnet8", num_classes=3), 12)
    own = {id(parameter) for parameter in model.backbone.parameters()}
    assert not own & {id(parameter) for parameter in model.branches.parameters()}


def test_group_norm_reaches_the_branches():
    backbone = build_staged_model("resnet8", num_classes=3, norm="group")
    assert not list(BranchedNetwork(backbone, 12, norm="group").buffers())


def test_a_frozen_backbone_neither_learns_nor_counts():
    model = BranchedNetwork(
        build_staged_model("resnet8", num_classes=3), 12, frozen_backbone=True
    ).train()
    before = copy.deepcopy(model.backbone.state_dict())
    answer = model(torch.randn(4, 3, 16, 16))
    sum(branch.sum() for branch in answer.branches).backward()
    assert not answer.logits.requires_grad
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    assert all(parameter.grad.any() for parameter in model.branches[0].parameters())
    after = model.backbone.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_networks_without_known_stages_are_refused():
    with pytest.raises(ConfigError, match=r"'mlp' does not show its stages; use wrn-D-K or one of"):
        check_staged_model("mlp")
    with pytest.raises(ConfigError, match=r"'vgg16-cifar' does not show its stages"):
        build_staged_model("vgg16-cifar", num_classes=3)
