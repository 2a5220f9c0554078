"""Read Tiny-ImageNet from the folder its archive unpacks to: 200 classes, 64x64 colour images."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from gsdist.data.images import ImageDataset, ImageFormat
from gsdist.errors import DataError

__all__ = ["TinyImageNet"]

_FOLDER = "tiny-imagenet-200"
_IMAGE_SIZE = 64


class TinyImageNet(ImageDataset):
    """Decode images of `root/tiny-imagenet-200/` when asked for them.

    Training images lie in `train/WNID/images/`, those for testing in `val/images/` with their classes
    in `val/val_annotations.txt`. Classes are numbered in the order of their sorted WNIDs.

    Args:
        root: folder that holds `tiny-imagenet-200/`.
        split: "train", or "test" for `val/`.
        image_size: height and width that images are scaled to; at 32 networks for CIFAR fit.
        subset: keep this many images, spread evenly over the sorted list; None = all.

    Raises:
        DataError: a missing or incomplete folder.
    """

    def __init__(
        self,
        root: Path,
        split: Literal["train", "test"],
        *,
        image_size: int = _IMAGE_SIZE,
        subset: int | None = None,
    ) -> None:
        folder = root / _FOLDER
        classes = sorted(path.name for path in (folder / "train").glob("*") if path.is_dir())
        if not classes:
            raise DataError(
                f"{folder} does not hold Tiny-ImageNet: unpack tiny-imagenet-200.zip of its authors in "
                f"{root}, so that there are folders {_FOLDER}/train/WNID/images/"
            )
        numbers = {name: number for number, name in enumerate(classes)}
        samples = _training(folder, numbers) if split == "train" else _testing(folder, numbers)
        if not samples:
            raise DataError(f"{folder} holds no images for {split!r}; unpack its archive anew")
        count = len(samples) if subset is None else min(subset, len(samples))
        self._samples = [samples[i * len(samples) // count] for i in range(count)]
        self.format = ImageFormat(
            num_classes=len(classes),
            channels=3,
            image_size=image_size,
            mean=(0.4802, 0.4481, 0.3975),
            std=(0.2770, 0.2691, 0.2821),
            crop_padding=4,
            flip=True,
        )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Decode, scale and return one image, uint8, and its label."""
        from torchvision.datasets.folder import default_loader
        from torchvision.transforms.v2.functional import pil_to_tensor, resize

        path, label = self._samples[index]
        image = pil_to_tensor(default_loader(str(path)))
        size = self.format.image_size
        return image if size == _IMAGE_SIZE else resize(image, [size, size]), label

    def all_labels(self) -> Tensor:
        """Return the labels of all images."""
        return torch.tensor([label for _, label in self._samples])


def _training(folder: Path, numbers: dict[str, int]) -> list[tuple[Path, int]]:
    return [
        (path, number)
        for name, number in numbers.items()
        for path in sorted((folder / "train" / name / "images").glob("*.JPEG"))
    ]


def _testing(folder: Path, numbers: dict[str, int]) -> list[tuple[Path, int]]:
    listing = folder / "val" / "val_annotations.txt"
    try:
        rows = [line.split("\t") for line in listing.read_text().splitlines() if line]
        return [(folder / "val" / "images" / row[0], numbers[row[1]]) for row in sorted(rows)]
    except (OSError, IndexError, KeyError) as error:
        raise DataError(
            f"{listing} does not name image and class of each test image ({error!r}); unpack the "
            "archive anew"
        ) from error
