"""Networks: exact sizes, shapes, initialisation, normalisation, names."""

import pytest
import torch
from torch import nn

from gsdist.errors import ConfigError
from gsdist.models import build_model, check_model, model_names
from gsdist.models.cifar_resnet import CifarResNet
from gsdist.models.normalization import replace_batch_norm


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# With 100 classes: the sizes published with the distillation papers (peers there come in pairs).
# Parameter-free shortcuts: the networks of the ResNet paper (0.27M, 0.46M, 0.66M, 0.85M, 1.7M).
@pytest.mark.parametrize(
    ("name", "num_classes", "shortcut", "expected"),
    [
        ("resnet8", 10, "projection", 78_042),
        ("resnet20", 10, "projection", 272_474),
        ("resnet20", 100, "projection", 278_324),
        ("resnet32", 100, "projection", 945_512 // 2),
        ("resnet56", 100, "projection", 861_620),
        ("resnet8x4", 100, "projection", 1_233_540),
        ("resnet32x4", 100, "projection", 7_433_860),
        ("resnet20", 10, "padding", 269_722),
        ("resnet32", 10, "padding", 464_154),
        ("resnet44", 10, "padding", 658_586),
        ("resnet56", 10, "padding", 853_018),
        ("resnet110", 10, "padding", 1_727_962),
        ("wrn-16-2", 100, "projection", 703_284),
        ("wrn-40-1", 100, "projection", 569_780),
        ("wrn-40-2", 100, "projection", 2_255_156),
        ("wrn-28-4", 100, "projection", 11_744_360 // 2),
        ("resnet18", 1000, "projection", 11_689_512),
        ("resnet34", 1000, "projection", 21_797_672),
    ],
)
def test_parameter_counts_are_exact(name, num_classes, shortcut, expected):
    with torch.device("meta"):
        model = build_model(name, num_classes=num_classes, shortcut=shortcut)
    assert _count(model) == expected


@pytest.mark.parametrize("depth", [8, 14, 20, 110])
def test_depth_counts_the_weighted_layers(depth):
    with torch.device("meta"):
        model = CifarResNet(depth, 10)
    on_the_main_path = [
        module
        for module in model.modules()
        if (isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3))
        or isinstance(module, nn.Linear)
    ]
    assert len(on_the_main_path) == depth


@pytest.mark.parametrize(
    ("name", "channels", "size"),
    [
        ("resnet8", 3, 32),
        ("resnet8", 1, 8),
        ("resnet8x4", 3, 32),
        ("wrn-10-1", 3, 32),
        ("mlp", 1, 8),
    ],
)
def test_forward_gives_one_logit_per_class(name, channels, size):
    model = build_model(name, num_classes=7, in_channels=channels, image_size=size)
    assert model(torch.randn(2, channels, size, size)).shape == (2, 7)


@pytest.mark.parametrize("name", ["resnet20", "wrn-16-2"])
def test_stages_have_the_published_shapes(name):
    expected = {
        "resnet20": [(16, 32), (32, 16), (64, 8)],
        "wrn-16-2": [(32, 32), (64, 16), (128, 8)],
    }
    model = build_model(name, num_classes=10)
    features = model.stem(torch.randn(1, 3, 32, 32))
    for stage, (channels, size) in zip(model.stages, expected[name], strict=True):
        features = stage(features)
        assert features.shape == (1, channels, size, size)


def test_padding_shortcut_keeps_every_second_pixel_and_adds_zero_channels():
    model = CifarResNet(8, 10, shortcut="padding")
    shortcut = model.stages[1][0].shortcut
    features = torch.randn(2, 16, 8, 8)
    result = shortcut(features)
    assert result.shape == (2, 32, 4, 4)
    assert torch.equal(result[:, 8:24], features[:, :, ::2, ::2])
    assert not result[:, :8].any()
    assert not result[:, 24:].any()


def test_residual_block_is_the_sum_of_both_paths():
    block = CifarResNet(8, 10).stages[1][0].eval()
    features = torch.randn(2, 16, 8, 8)
    inner = block.norm2(block.conv2(block.norm1(block.conv1(features)).clamp(min=0)))
    expected = (inner + block.shortcut(features)).clamp(min=0)
    torch.testing.assert_close(block(features), expected)


def test_wide_block_projects_the_activated_input_and_passes_the_raw_one():
    first, second = build_model("wrn-16-2", num_classes=10).eval().stages[1]
    for block, channels in ((first, 32), (second, 64)):
        features = torch.randn(2, channels, 8, 8)
        nn.init.zeros_(block.conv2.weight)
        active = block.norm1(features).clamp(min=0)
        expected = features if block is second else block.projection(active)
        torch.testing.assert_close(block(features), expected)


def test_convolutions_start_from_he_normal_fan_out():
    torch.manual_seed(0)
    weight = build_model("resnet20", num_classes=10).stages[2][2].conv2.weight
    expected = (2 / (64 * 9)) ** 0.5
    # 36,864 draws: the standard error of the spread is 0.37 %.
    assert abs(weight.std().item() / expected - 1) < 0.02
    assert abs(weight.mean().item()) < 5 * expected / weight.numel() ** 0.5


def test_group_norm_starts_from_the_weights_that_batch_norm_would():
    torch.manual_seed(3)
    batch = build_model("resnet8", num_classes=10)
    torch.manual_seed(3)
    group = build_model("resnet8", num_classes=10, norm="group")
    group_parameters = dict(group.named_parameters())
    assert list(group_parameters) == [name for name, _ in batch.named_parameters()]
    for name, parameter in batch.named_parameters():
        assert torch.equal(parameter, group_parameters[name])
    assert not list(group.buffers())


def test_group_norm_makes_an_image_independent_of_its_batch():
    model = build_model("resnet8", num_classes=10, norm="group").train()
    images = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(model(images)[:1], model(images[:1]))


def test_group_norm_takes_fewer_groups_where_channels_do_not_divide():
    model = replace_batch_norm(nn.Sequential(nn.BatchNorm2d(12), nn.BatchNorm2d(7)))
    assert [layer.num_groups for layer in model] == [4, 1]


@pytest.mark.parametrize("name", ["resnet50", "vit_b_16", "googlenet", "inception_v3", "vgg11_bn"])
def test_torchvision_models_come_by_name(name):
    with torch.device("meta"):
        model = build_model(name, num_classes=12, image_size=96)
        size = 299 if name == "inception_v3" else 96
        assert model(torch.empty(2, 3, size, size)).shape == (2, 12)


def test_group_norm_reaches_into_torchvision_models():
    model = build_model("shufflenet_v2_x0_5", num_classes=3, norm="group")
    kinds = {type(module) for module in model.modules()}
    assert nn.GroupNorm in kinds
    assert nn.BatchNorm2d not in kinds
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 3)


def test_unknown_name_lists_close_ones():
    with pytest.raises(ConfigError, match=r"'resnet21'.*did you mean.*resnet20"):
        build_model("resnet21", num_classes=10)
    with pytest.raises(ConfigError, match=r"known are resnet8"):
        check_model("zzzzzzzz")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "wrn-17-2"}, "6n \\+ 4.*17"),
        ({"name": "wrn-16-0"}, "at least 1, got 0"),
        ({"name": "resnet20", "num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"name": "resnet20", "norm": "layer"}, "norm must be 'batch' or 'group', got 'layer'"),
        ({"name": "resnet20", "shortcut": "none"}, "shortcut must be .* got 'none'"),
        ({"name": "wrn-16-2", "shortcut": "padding"}, "'wrn-16-2' is none"),
        ({"name": "mlp"}, "needs image_size"),
        ({"name": "resnet18", "in_channels": 1}, "takes 3 channels, the data has 1"),
        ({"name": "vit_b_16", "image_size": 50}, "vit_b_16"),
    ],
)
def test_impossible_requests_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        build_model(**{"num_classes": 10} | options)
    with pytest.raises(ConfigError, match=r"6n \+ 2"):
        CifarResNet(19, 10)


def test_names_cover_both_sources():
    names = model_names()
    assert {"resnet8", "resnet110", "wrn-28-10", "mlp", "resnet50", "mobilenet_v2"} <= set(names)
    assert len(names) == len(set(names))
    assert not {"fasterrcnn_resnet50_fpn", "r3d_18"} & set(names)
