"""Build MobileNetV2 at half width for CIFAR-sized images, with either of the two stems in use.

Source: Sandler et al., MobileNetV2, 2018, table 2, with strides for small images; the taps are those of
HSAKD (Yang et al., 2021).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from gsdist.models.layers import conv3x3, initialise_convolutions
from gsdist.models.staged import StagedNetwork

__all__ = ["HalfMobileNetV2"]

_EXPANSION = 6
_STEM_WIDTH = 16
_TAIL_WIDTH = 1280
_STAGES = (
    ((1, 8, 1, 1), (_EXPANSION, 12, 2, 1)),
    ((_EXPANSION, 16, 3, 2),),
    ((_EXPANSION, 32, 4, 2), (_EXPANSION, 48, 3, 1)),
    ((_EXPANSION, 80, 3, 2), (_EXPANSION, 160, 1, 1)),
)
"""For each stage its entries: expansion, channels, blocks, stride of the first block."""


class HalfMobileNetV2(StagedNetwork):
    """Classify small images with MobileNetV2 of width 0.5.

    Args:
        num_classes: number of outputs.
        in_channels: channels of the images.
        stem_stride: 1 as in HSAKD; 2 as in RepDistiller and its followers, whose accuracies are 9 points
            lower.
    """

    def __init__(self, num_classes: int, *, in_channels: int = 3, stem_stride: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv3x3(in_channels, _STEM_WIDTH, stem_stride),
            nn.BatchNorm2d(_STEM_WIDTH),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.Sequential(*(self.make_stage(number) for number in range(4)))
        self.tail = self.make_tail()
        self.classifier = nn.Linear(_TAIL_WIDTH, num_classes)
        initialise_convolutions(self)

    def make_stage(self, number: int, *, keep_shape: bool = False) -> nn.Sequential:
        """Build a stage with fresh weights."""
        channels = _STEM_WIDTH if number == 0 else _STAGES[number - 1][-1][1]
        if keep_shape:
            channels = _STAGES[number][-1][1]
        blocks: list[nn.Module] = []
        for expansion, width, repeats, stride in _STAGES[number]:
            for position in range(repeats):
                halves = position == 0 and not keep_shape
                blocks.append(
                    _InvertedResidual(channels, width, stride if halves else 1, expansion)
                )
                channels = width
        return nn.Sequential(*blocks)

    def make_tail(self) -> nn.Sequential:
        """Build the convolution to 1280 channels."""
        return nn.Sequential(
            nn.Conv2d(_STAGES[-1][-1][1], _TAIL_WIDTH, 1, bias=False),
            nn.BatchNorm2d(_TAIL_WIDTH),
            nn.ReLU(inplace=True),
        )


class _InvertedResidual(nn.Module):
    # torchvision's block leaves the first convolution out at expansion 1; that of the papers has it.
    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = in_channels * expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, groups=width, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(channels)
        self.adds_input = stride == 1 and in_channels == channels

    def forward(self, features: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(features)))
        inner = F.relu(self.norm2(self.conv2(inner)))
        result: Tensor = self.norm3(self.conv3(inner))
        return features + result if self.adds_input else result
