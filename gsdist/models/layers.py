"""Hold what the CIFAR networks share: 3x3 convolutions and their initialisation."""

from torch import nn

__all__ = ["conv3x3", "initialise_convolutions"]


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Make a padded 3x3 convolution without bias."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def initialise_convolutions(model: nn.Module) -> None:
    """Draw the weights of all convolutions from He's normal distribution, fan-out mode."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
