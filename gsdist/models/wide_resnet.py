"""Build wide residual networks WRN-d-k for CIFAR-sized images.

Source: Zagoruyko and Komodakis, Wide Residual Networks, 2016; without dropout.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from gsdist.errors import ConfigError
from gsdist.models.layers import conv3x3, initialise_convolutions
from gsdist.models.staged import StagedNetwork

__all__ = ["WideResNet"]


class WideResNet(StagedNetwork):
    """Classify small images with a pre-activation ResNet of depth 6n + 4 and widths 16k, 32k, 64k.

    Args:
        depth: number of weighted layers, 6n + 4 with n blocks per stage.
        widen_factor: the k above, at least 1.
        num_classes: number of outputs.
        in_channels: channels of the images.

    Raises:
        ConfigError: a depth that is not 6n + 4, or a widen factor below 1.
    """

    def __init__(
        self, depth: int, widen_factor: int, num_classes: int, *, in_channels: int = 3
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ConfigError(f"depth of a WRN must be 6n + 4 (10, 16, 22, 28, ...), got {depth}")
        if widen_factor < 1:
            raise ConfigError(f"widen factor of a WRN must be at least 1, got {widen_factor}")
        self._blocks = (depth - 4) // 6
        self._widths = (16, 16 * widen_factor, 32 * widen_factor, 64 * widen_factor)
        self.stem = conv3x3(in_channels, self._widths[0])
        self.stages = nn.Sequential(*(self.make_stage(number) for number in range(3)))
        self.tail = self.make_tail()
        self.classifier = nn.Linear(self._widths[3], num_classes)
        initialise_convolutions(self)

    def make_stage(self, number: int, *, keep_shape: bool = False) -> nn.Sequential:
        """Build a stage with fresh weights."""
        channels = self._widths[number + 1]
        in_channels = channels if keep_shape else self._widths[number]
        stride = 1 if keep_shape or number == 0 else 2
        first = _PreActivationBlock(in_channels, channels, stride)
        rest = [_PreActivationBlock(channels, channels, 1) for _ in range(self._blocks - 1)]
        return nn.Sequential(first, *rest)

    def make_tail(self) -> nn.Sequential:
        """Build the activation that pre-activation blocks leave to whoever reads them."""
        return nn.Sequential(nn.BatchNorm2d(self._widths[3]), nn.ReLU())


class _PreActivationBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.projection = (
            None
            if in_channels == channels
            else nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
        )

    def forward(self, features: Tensor) -> Tensor:
        active = F.relu(self.norm1(features))
        # As in the paper, the projection reads the activated input, the identity the raw one.
        skipped = features if self.projection is None else self.projection(active)
        inner = self.conv2(F.relu(self.norm2(self.conv1(active))))
        result: Tensor = skipped + inner
        return result
