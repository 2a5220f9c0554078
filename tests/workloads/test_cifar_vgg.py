"""VGG-16 for CIFAR: published sizes, layout and shapes."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gsdist.errors import ConfigError
from gsdist.models import build_model, model_names


def _meta(**options):
    with torch.device("meta"):
        return build_model("vgg16-cifar", num_classes=10, **options)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_parameter_count_is_exact(norm):
    # 14.724 M in the pruning literature, 14.7 M with gTop-k.
    assert sum(p.numel() for p in _meta(norm=norm).parameters()) == 14_724_042


def test_multiply_adds_are_the_published_ones():
    with FlopCounterMode(display=False) as counter:
        _meta()(torch.empty(1, 3, 32, 32, device="meta"))
    assert counter.get_total_flops() / 2 == pytest.approx(313.20e6, abs=0.005e6)


def test_thirteen_convolutions_and_one_linear_layer():
    model = _meta()
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 13
    assert sum(layer.out_channels for layer in convolutions) == 4224
    assert all(layer.bias is None for layer in convolutions)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(512, 10)]
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == 13


def test_resolution_halves_after_each_group():
    model = build_model("vgg16-cifar", num_classes=10).eval()
    features, sizes = torch.randn(1, 3, 32, 32), []
    for layer in model.features:
        features = layer(features)
        if isinstance(layer, nn.ReLU):
            sizes.append(features.shape[-1])
    assert sizes == [32] * 2 + [16] * 2 + [8] * 3 + [4] * 3 + [2] * 3
    pooled = nn.MaxPool2d(2)(features).flatten(1)
    assert pooled.shape == (1, 512)


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28), (3, 16)])
def test_forward_gives_one_logit_per_class(channels, size):
    model = build_model("vgg16-cifar", num_classes=7, in_channels=channels).eval()
    assert model(torch.randn(2, channels, size, size)).shape == (2, 7)


def test_logits_are_the_classifier_of_the_maxima():
    model = build_model("vgg16-cifar", num_classes=10).eval()
    images = torch.randn(2, 3, 32, 32)
    maxima = model.features(images).amax((2, 3))
    torch.testing.assert_close(model(images), model.classifier(maxima))


def test_too_small_images_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"at least 16 pixels.*got \(8, 8\)"):
        build_model("vgg16-cifar", num_classes=10, in_channels=1)(torch.zeros(1, 1, 8, 8))


def test_it_does_not_take_the_name_of_torchvisions():
    assert "vgg16-cifar" in model_names()
    with torch.device("meta"):
        torchvisions = build_model("vgg16", num_classes=1000)
    assert sum(p.numel() for p in torchvisions.parameters()) == 138_357_544
