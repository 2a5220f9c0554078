"""Read Pascal VOC's images and boxes from the folder its archives unpack to."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from gsdist.errors import DataError

__all__ = ["VOC_CLASSES", "BoxedImage", "VocImages", "voc_images"]

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
"""Class 1 is the first of them; 0 is the background."""
BoxedImage = tuple[Tensor, dict[str, Tensor]]
"""uint8 `(3, H, W)`, and of its objects "boxes" float32 `(n, 4)` (left, top, right, bottom in pixels),
"labels" int64 `(n,)` and "difficult" bool `(n,)`."""


class VocImages(Dataset[BoxedImage]):
    """Decode images of `root/VOCdevkit/VOC<year>/` when asked for them.

    Args:
        root: folder that holds `VOCdevkit/`.
        year: 2007 to 2012.
        image_set: list in `ImageSets/Main`: "train", "val", "trainval", of 2007 "test", too.

    Raises:
        DataError: a missing folder or list.
    """

    def __init__(self, root: Path, year: int, image_set: str) -> None:
        from torchvision.datasets import VOCDetection

        try:
            self._images = VOCDetection(str(root), year=str(year), image_set=image_set)
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"cannot read {image_set!r} of Pascal VOC {year} in {root} ({error}): unpack its authors' "
                f"archives there, so that there are VOCdevkit/VOC{year}/JPEGImages, Annotations and "
                f"ImageSets/Main/{image_set}.txt"
            ) from error

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._images)

    def __getitem__(self, index: int) -> BoxedImage:
        """Return one image and its objects."""
        from torchvision.transforms.v2.functional import pil_to_tensor

        image, tree = self._images[index]
        return pil_to_tensor(image), _objects(tree["annotation"].get("object", []))


def voc_images(root: Path, years: Sequence[int], image_set: str) -> Dataset[BoxedImage]:
    """Return the images of several years, one after the other.

    Raises:
        DataError: a missing folder or list.
    """
    return ConcatDataset([VocImages(root, year, image_set) for year in years])


def _objects(listed: list[Mapping[str, Any]]) -> dict[str, Tensor]:
    edges = ("xmin", "ymin", "xmax", "ymax")
    boxes = [[float(one["bndbox"][edge]) for edge in edges] for one in listed]
    labels = [1 + VOC_CLASSES.index(one["name"]) for one in listed]
    difficult = [one.get("difficult") == "1" for one in listed]
    # Published pixels count from 1, and the last one belongs to the box.
    corners = torch.tensor(boxes).view(-1, 4) - torch.tensor([1.0, 1.0, 0.0, 0.0])
    return {
        "boxes": corners,
        "labels": torch.tensor(labels, dtype=torch.int64),
        "difficult": torch.tensor(difficult, dtype=torch.bool),
    }
