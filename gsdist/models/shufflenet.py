"""Build ShuffleNet V1 and V2 for CIFAR-sized images: their stems keep the resolution.

Source: Zhang et al., ShuffleNet, 2018 (three groups); Ma et al., ShuffleNet V2, 2018.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.shufflenetv2 import InvertedResidual

from gsdist.models.layers import initialise_convolutions
from gsdist.models.staged import StagedNetwork

__all__ = ["ShuffleNetV1", "ShuffleNetV2"]

_STEM_WIDTH = 24
_BLOCKS = (4, 8, 4)
_GROUPS = 3
_V1_WIDTHS = (_STEM_WIDTH, 240, 480, 960)


class ShuffleNetV1(StagedNetwork):
    """Classify small images with ShuffleNet V1.

    Args:
        num_classes: number of outputs.
        in_channels: channels of the images.
    """

    def __init__(self, num_classes: int, *, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = _convolution(in_channels, _STEM_WIDTH, 1)
        self.stages = nn.Sequential(*(self.make_stage(number) for number in range(3)))
        self.tail = self.make_tail()
        self.classifier = nn.Linear(_V1_WIDTHS[-1], num_classes)
        initialise_convolutions(self)

    def make_stage(self, number: int, *, keep_shape: bool = False) -> nn.Sequential:
        """Build a stage with fresh weights."""
        channels = _V1_WIDTHS[number + 1]
        first = (
            _GroupedBlock(channels, channels, 1)
            if keep_shape
            else _GroupedBlock(_V1_WIDTHS[number], channels, 2)
        )
        rest = [_GroupedBlock(channels, channels, 1) for _ in range(_BLOCKS[number] - 1)]
        return nn.Sequential(first, *rest)


class ShuffleNetV2(StagedNetwork):
    """Classify small images with ShuffleNet V2.

    Args:
        num_classes: number of outputs.
        in_channels: channels of the images.
        widths: channels of the three stages and of the tail; default those of factor 1.
        stem_kernel: size of the stem's convolution: 1 as in HSAKD, 3 as in MCL.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        widths: tuple[int, int, int, int] = (116, 232, 464, 1024),
        stem_kernel: int = 1,
    ) -> None:
        super().__init__()
        self._widths = (_STEM_WIDTH, *widths)
        self.stem = _convolution(in_channels, _STEM_WIDTH, stem_kernel)
        self.stages = nn.Sequential(*(self.make_stage(number) for number in range(3)))
        self.tail = self.make_tail()
        self.classifier = nn.Linear(widths[3], num_classes)
        initialise_convolutions(self)

    def make_stage(self, number: int, *, keep_shape: bool = False) -> nn.Sequential:
        """Build a stage with fresh weights."""
        channels = self._widths[number + 1]
        first = InvertedResidual(channels if keep_shape else self._widths[number], channels, 2)
        if keep_shape:
            # A stride of 1 would make torchvision's block an ordinary one, without its second path.
            for module in first.modules():
                if isinstance(module, nn.Conv2d):
                    module.stride = (1, 1)
        rest = [InvertedResidual(channels, channels, 1) for _ in range(_BLOCKS[number] - 1)]
        return nn.Sequential(first, *rest)

    def make_tail(self) -> nn.Sequential:
        """Build the last convolution."""
        return _convolution(self._widths[3], self._widths[4], 1)


class _GroupedBlock(nn.Module):
    """Transform in a quarter of the channels it adds, shuffled; with stride 2 keep the pooled input, too."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        added = channels - in_channels if stride == 2 else channels
        width = added // 4
        first_groups = 1 if in_channels == _STEM_WIDTH else _GROUPS
        self.conv1 = nn.Conv2d(in_channels, width, 1, groups=first_groups, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.shuffle = nn.ChannelShuffle(first_groups)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, groups=width, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, added, 1, groups=_GROUPS, bias=False)
        self.norm3 = nn.BatchNorm2d(added)
        self.stride = stride

    def forward(self, features: Tensor) -> Tensor:
        inner = self.shuffle(F.relu(self.norm1(self.conv1(features))))
        inner = F.relu(self.norm2(self.conv2(inner)))
        inner = self.norm3(self.conv3(inner))
        if self.stride == 1:
            return F.relu(inner + features)
        pooled = F.avg_pool2d(features, 3, stride=2, padding=1)
        return F.relu(torch.cat([inner, pooled], dim=1))


def _convolution(in_channels: int, channels: int, kernel_size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )
