"""Build VGG-13 as the distillation papers do: biased convolutions, mean over positions, one classifier.

Source: Simonyan and Zisserman, Very Deep Convolutional Networks, 2014, configuration B, with batch
normalisation; the taps are those of HSAKD (Yang et al., 2021).
"""

from torch import nn

from gsdist.models.layers import initialise_convolutions
from gsdist.models.staged import StagedNetwork

__all__ = ["SmallVgg13"]

_WIDTHS = (64, 128, 256, 512, 512)
"""Channels of the five groups of two convolutions."""


class SmallVgg13(StagedNetwork):
    """Classify small images with VGG-13; stages are the groups, the last two of them together.

    Args:
        num_classes: number of outputs.
        in_channels: channels of the images.
    """

    def __init__(self, num_classes: int, *, in_channels: int = 3) -> None:
        super().__init__()
        self._in_channels = in_channels
        self.stem = nn.Identity()
        self.stages = nn.Sequential(*(self.make_stage(number) for number in range(4)))
        self.tail = self.make_tail()
        self.classifier = nn.Linear(_WIDTHS[-1], num_classes)
        initialise_convolutions(self)

    def make_stage(self, number: int, *, keep_shape: bool = False) -> nn.Sequential:
        """Build a stage with fresh weights; all but the first begin with a pooling layer."""
        channels = _WIDTHS[number]
        before = self._in_channels if number == 0 else _WIDTHS[number - 1]
        pooling = [] if keep_shape or number == 0 else [nn.MaxPool2d(2)]
        layers = [*pooling, *_group(channels if keep_shape else before, channels)]
        if number == 3:
            layers += _group(channels, _WIDTHS[4])
        return nn.Sequential(*layers)


def _group(in_channels: int, channels: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for width in (in_channels, channels):
        layers += [
            nn.Conv2d(width, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        ]
    return layers
