"""What the methods rely on: how normalisation answers to filters that shrink or are zero."""

import pytest
import torch
from torch import nn


def block():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU())
    nn.init.constant_(layers[1].bias, 0.1)
    return layers, torch.randn(16, 4, 8, 8)


def scaled(factor):
    """Return activations and the gradient of the first filter, which is scaled by a factor."""
    layers, images = block()
    with torch.no_grad():
        layers[0].weight[0] *= factor
    output = layers(images)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    (output * weights).sum().backward()
    return output.detach(), layers[0].weight.grad[0].norm()


def test_normalisation_undoes_the_shrinking_of_filters():
    whole, half = scaled(1.0)[0], scaled(0.5)[0]
    assert float((whole - half).abs().max()) < 1e-3
    assert float((whole - scaled(0.001)[0]).abs().max()) > 0.5


@pytest.mark.parametrize("factor", [1.0, 0.5, 0.2])
def test_the_gradient_of_a_filter_half_as_large_is_twice_as_large(factor):
    assert 1.9 < float(scaled(factor / 2)[1] / scaled(factor)[1]) < 2.1


@pytest.mark.parametrize(("shift", "revives"), [(-0.5, False), (0.0, False), (0.5, True)])
def test_a_zero_filter_gets_a_gradient_only_under_a_positive_shift(shift, revives):
    layers, images = block()
    with torch.no_grad():
        layers[0].weight[0] = 0
        layers[1].bias[0] = shift
    output = layers(images)
    (output * torch.randn_like(output)).sum().backward()
    assert (layers[0].weight.grad[0].norm() > 0) == revives
