"""Find objects with torchvision's Faster R-CNN on the stages of a trained network.

Source: Ren et al., Faster R-CNN, 2015, with the feature pyramid of Lin et al., 2017, as torchvision has
them.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from gsdist.models.staged import StagedNetwork

__all__ = ["PyramidBackbone", "build_detector"]

_PYRAMID_CHANNELS = 256
_SMALLEST_ANCHOR = 32
_ASPECTS = (0.5, 1.0, 2.0)


class PyramidBackbone(nn.Module):
    """Turn images into maps of equally many channels, one per stage and a coarser one.

    Stem and first stage stay as they are, so does all batch normalisation, whose statistics the few images
    of a batch would spoil; what torchvision does with trained networks.

    Args:
        network: its stem and stages are used, not copied.
    """

    def __init__(self, network: StagedNetwork) -> None:
        super().__init__()
        self.stem, self.stages = network.stem, network.stages
        self.stem.requires_grad_(False)
        self.stages[0].requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)
        self.pyramid = FeaturePyramidNetwork(
            _channels(network), _PYRAMID_CHANNELS, LastLevelMaxPool()
        )
        self.out_channels = _PYRAMID_CHANNELS
        self.train()

    def train(self, mode: bool = True) -> "PyramidBackbone":
        """Switch the mode; batch normalisation stays in evaluation mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the maps `(N, 256, H, W)` by the number of their stage, and "pool"."""
        features = self.stem(images)
        taps = {}
        for number, stage in enumerate(self.stages):
            features = stage(features)
            taps[str(number)] = features
        maps: dict[str, Tensor] = self.pyramid(taps)
        return maps


def build_detector(
    network: StagedNetwork, num_classes: int, *, image_size: int, max_image_size: int
) -> FasterRCNN:
    """Build a detector with fresh weights on the stages of a network.

    Takes a list of float images `(3, H, W)` in [0, 1] and, when training, of their targets ("boxes",
    "labels"); returns its losses by name, in evaluation mode for each image "boxes", "labels" and "scores".

    Args:
        network: a trained one; its stem and stages are used, not copied.
        num_classes: number of classes, the background included.
        image_size: pixels that the shorter side of images is scaled to.
        max_image_size: most pixels of the longer side.
    """
    stages = len(network.stages)
    options: dict[str, Any] = {"min_size": image_size, "max_size": max_image_size}
    sizes = tuple((_SMALLEST_ANCHOR * 2**level,) for level in range(stages + 1))
    return FasterRCNN(
        PyramidBackbone(network),
        num_classes,
        rpn_anchor_generator=AnchorGenerator(sizes, (_ASPECTS,) * len(sizes)),
        box_roi_pool=MultiScaleRoIAlign(
            featmap_names=[str(number) for number in range(stages)], output_size=7, sampling_ratio=2
        ),
        **options,
    )


def _channels(network: StagedNetwork) -> list[int]:
    was_training = network.training
    with torch.no_grad():
        taps = network.eval().taps(torch.zeros(1, 3, 64, 64))
    network.train(was_training)
    return [tap.shape[1] for tap in taps]
