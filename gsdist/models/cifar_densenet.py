"""Build DenseNet for CIFAR-sized images: every layer reads the outputs of all layers before it.

Source: Huang et al., Densely Connected Convolutional Networks, 2017, section 3, the form without
bottleneck and compression.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsdist.errors import ConfigError
from gsdist.models.layers import conv3x3, initialise_convolutions

__all__ = ["CifarDenseNet"]

_BLOCKS = 3


class CifarDenseNet(nn.Module):
    """Classify small images with a DenseNet of three blocks.

    Takes float images `(N, in_channels, H, W)`, returns logits `(N, num_classes)`.

    Args:
        depth: number of weighted layers, 3n + 4 with n layers per block.
        num_classes: number of outputs.
        in_channels: channels of the images.
        growth: channels that every layer adds; the stem has twice as many.

    Raises:
        ConfigError: a depth that is not 3n + 4.
    """

    def __init__(
        self, depth: int, num_classes: int, *, in_channels: int = 3, growth: int = 12
    ) -> None:
        super().__init__()
        if depth < 7 or (depth - 4) % _BLOCKS:
            raise ConfigError(f"depth of a CIFAR DenseNet must be 3n + 4 (40, 100), got {depth}")
        layers = (depth - 4) // _BLOCKS
        channels = 2 * growth
        self.stem = conv3x3(in_channels, channels)
        stages: list[nn.Module] = []
        for block in range(_BLOCKS):
            if block:
                stages.append(_Transition(channels))
            for _ in range(layers):
                stages.append(_DenseLayer(channels, growth))
                channels += growth
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, num_classes)
        initialise_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        features = F.relu(self.norm(self.stages(self.stem(images))))
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits


class _DenseLayer(nn.Module):
    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.conv = conv3x3(in_channels, growth)

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([features, self.conv(F.relu(self.norm(features)))], dim=1)


class _Transition(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.norm(features))), 2)
