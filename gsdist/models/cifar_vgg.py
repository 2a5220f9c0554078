"""Build VGG-16 for CIFAR-sized images: thirteen 3x3 convolutions and a single linear layer.

Source: Simonyan and Zisserman, Very Deep Convolutional Networks, 2014, configuration D, in the form
common for CIFAR: batch normalisation after each convolution, which makes its bias redundant, and
one classifier in place of three.
"""

import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from gsdist.errors import ConfigError
from gsdist.models.layers import conv3x3, initialise_convolutions

__all__ = ["CifarVgg16"]

_GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Output channels of the convolutions; each group ends in a pooling layer."""
_SMALLEST_IMAGE = 16


class CifarVgg16(nn.Module):
    """Classify small images with VGG-16.

    Takes float images `(N, in_channels, H, W)`, H and W at least 16, returns logits
    `(N, num_classes)`. The last pooling covers all of what is left, on CIFAR 2x2.

    Args:
        num_classes: number of outputs.
        in_channels: channels of the images.
    """

    def __init__(self, num_classes: int, *, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for group in _GROUPS:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for channels in group:
                layers += [
                    conv3x3(in_channels, channels),
                    nn.BatchNorm2d(channels),
                    nn.ReLU(inplace=True),
                ]
                in_channels = channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(in_channels, num_classes)
        initialise_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits.

        Raises:
            ConfigError: images of fewer than 16 pixels in height or width.
        """
        _require_size(images)
        features = self.features(images)
        pooled = F.max_pool2d(features, features.shape[2:]).flatten(1)
        logits: Tensor = self.classifier(pooled)
        return logits


@torch.fx.wrap  # a branch on the size is nothing that torch.fx could follow
def _require_size(images: Tensor) -> None:
    if min(images.shape[2:]) < _SMALLEST_IMAGE:
        raise ConfigError(
            f"VGG-16 halves images four times and takes at least {_SMALLEST_IMAGE} pixels in "
            f"height and width, got {tuple(images.shape[2:])}"
        )
