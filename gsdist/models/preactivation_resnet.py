"""Build pre-activation ResNets of bottleneck blocks for CIFAR-sized images.

Source: He et al., Identity Mappings in Deep Residual Networks, 2016, section 4 and appendix.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from gsdist.errors import ConfigError
from gsdist.models.layers import conv3x3, initialise_convolutions
from gsdist.models.staged import StagedNetwork

__all__ = ["PreActivationResNet"]

_STEM_WIDTH = 16
_EXPANSION = 4


class PreActivationResNet(StagedNetwork):
    """Classify small images with a pre-activation ResNet.

    Args:
        depth: number of weighted layers, 9n + 2 with n blocks per stage.
        num_classes: number of outputs.
        in_channels: channels of the images.

    Raises:
        ConfigError: a depth that is not 9n + 2.
    """

    def __init__(self, depth: int, num_classes: int, *, in_channels: int = 3) -> None:
        super().__init__()
        if depth < 11 or (depth - 2) % 9:
            raise ConfigError(
                f"depth of a pre-activation ResNet must be 9n + 2 (29, 164), got {depth}"
            )
        self._blocks = (depth - 2) // 9
        self.stem = conv3x3(in_channels, _STEM_WIDTH)
        self.stages = nn.Sequential(*(self.make_stage(number) for number in range(3)))
        self.tail = self.make_tail()
        self.classifier = nn.Linear(_EXPANSION * 4 * _STEM_WIDTH, num_classes)
        initialise_convolutions(self)

    def make_stage(self, number: int, *, keep_shape: bool = False) -> nn.Sequential:
        """Build a stage with fresh weights."""
        width = _STEM_WIDTH * 2**number
        channels = _EXPANSION * width
        before = _STEM_WIDTH if number == 0 else channels // 2
        in_channels = channels if keep_shape else before
        first = _Block(in_channels, width, 1 if keep_shape or number == 0 else 2)
        rest = [_Block(channels, width, 1) for _ in range(self._blocks - 1)]
        return nn.Sequential(first, *rest)

    def make_tail(self) -> nn.Sequential:
        """Build the activation that pre-activation blocks leave to whoever reads them."""
        return nn.Sequential(nn.BatchNorm2d(_EXPANSION * 4 * _STEM_WIDTH), nn.ReLU())


class _Block(nn.Module):
    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        channels = _EXPANSION * width
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.norm3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        inner = self.conv1(F.relu(self.norm1(features)))
        inner = self.conv2(F.relu(self.norm2(inner)))
        inner = self.conv3(F.relu(self.norm3(inner)))
        result: Tensor = self.shortcut(features) + inner
        return result
