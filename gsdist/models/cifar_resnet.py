"""Build the residual networks for CIFAR-sized images: depth 6n + 2, basic blocks, three stages.

Source: He et al., Deep Residual Learning for Image Recognition, 2015, section 4.2; the widths `(32,
    64, 128, 256)`
("x4") are the ones common in the distillation literature.
"""

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from gsdist.errors import ConfigError
from gsdist.models.layers import ChannelPadding, conv3x3, initialise_convolutions
from gsdist.models.staged import StagedNetwork

__all__ = ["CifarResNet", "Shortcut", "check_shortcut"]

Shortcut = Literal["projection", "padding"]
"""How a block whose shape changes passes its input on: by a 1x1 convolution with normalisation
("projection", the paper's option B), or strided, with zero channels added on both sides and without
parameters ("padding", option A)."""


def check_shortcut(kind: str) -> None:
    """Refuse what is not a `Shortcut`.

    Raises:
        ConfigError: an unknown kind.
    """
    if kind not in get_args(Shortcut):
        raise ConfigError(f"shortcut must be 'projection' or 'padding', got {kind!r}")


class CifarResNet(StagedNetwork):
    """Classify small images with a ResNet of basic blocks.

    Args:
        depth: number of weighted layers, 6n + 2 with n blocks per stage.
        num_classes: number of outputs.
        in_channels: channels of the images.
        widths: channels of the stem and of the three stages; the second and third stage halve the
            resolution.
        shortcut: what a block whose shape changes does with its input.

    Raises:
        ConfigError: a depth that is not 6n + 2, or an unknown shortcut.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int,
        *,
        in_channels: int = 3,
        widths: tuple[int, int, int, int] = (16, 16, 32, 64),
        shortcut: Shortcut = "projection",
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ConfigError(
                f"depth of a CIFAR ResNet must be 6n + 2 (8, 14, 20, ...), got {depth}"
            )
        check_shortcut(shortcut)
        self._blocks = (depth - 2) // 6
        self._widths = widths
        self._shortcut: Shortcut = shortcut
        self.stem = nn.Sequential(
            conv3x3(in_channels, widths[0]), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)
        )
        self.stages = nn.Sequential(*(self.make_stage(number) for number in range(3)))
        self.tail = self.make_tail()
        self.classifier = nn.Linear(widths[3], num_classes)
        initialise_convolutions(self)

    def make_stage(self, number: int, *, keep_shape: bool = False) -> nn.Sequential:
        """Build a stage with fresh weights."""
        channels = self._widths[number + 1]
        in_channels = channels if keep_shape else self._widths[number]
        stride = 1 if keep_shape or number == 0 else 2
        first = _BasicBlock(in_channels, channels, stride, self._shortcut)
        rest = [_BasicBlock(channels, channels, 1, self._shortcut) for _ in range(self._blocks - 1)]
        return nn.Sequential(first, *rest)


class _BasicBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(in_channels, channels, stride, shortcut)

    def forward(self, features: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(features)))
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut(features))


def _shortcut(in_channels: int, channels: int, stride: int, kind: Shortcut) -> nn.Module:
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    if kind == "padding":
        added = channels - in_channels
        return ChannelPadding(added // 2, added - added // 2, stride)
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
    )
