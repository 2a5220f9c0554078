"""Read images from folders, one per class, as torchvision's ImageFolder does."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from gsdist.data.images import ImageDataset, ImageFormat
from gsdist.errors import DataError

__all__ = ["FolderImages", "imagenet_folder"]

_IMAGE_SIZE = 224
_FOLDERS = {"train": "train", "test": "val"}
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class FolderImages(ImageDataset):
    """Decode images from `root/train/CLASS/` or `root/val/CLASS/` when asked for them.

    Training images are cut by RandomResizedCrop (flips follow on the device), test images resized
    to 8/7 of the size and cut in the centre. The random crop draws from torch's global generator of
    the process it runs in: with DataLoader workers a resumed epoch sees other crops than an
    uninterrupted one.

    Args:
        root: folder that holds `train/` and `val/`.
        split: "train", or "test" for `val/`.
        image_size: height and width after cutting.
        random_crop: whether to cut at random; None = only for training.
        subset: keep this many images, spread evenly over the sorted list and so over the classes;
            None = all.

    Raises:
        DataError: a missing folder, no images in a class, or other classes in `val/` than in
            `train/`.
    """

    def __init__(
        self,
        root: Path,
        split: Literal["train", "test"],
        *,
        image_size: int = _IMAGE_SIZE,
        random_crop: bool | None = None,
        subset: int | None = None,
    ) -> None:
        from torchvision.datasets import ImageFolder

        folder = root / _FOLDERS[split]
        classes = _classes(root)
        cut_at_random = split == "train" if random_crop is None else random_crop
        try:
            self._folder = ImageFolder(str(folder), transform=_transform(image_size, cut_at_random))
        except FileNotFoundError as error:
            raise DataError(f"cannot use {folder} as image folder: {error}") from error
        if subset is not None:
            samples = self._folder.samples
            count = min(subset, len(samples))
            self._folder.samples = [samples[i * len(samples) // count] for i in range(count)]
        self.format = ImageFormat(
            num_classes=len(classes),
            channels=3,
            image_size=image_size,
            mean=_MEAN,
            std=_STD,
            flip=True,
        )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._folder.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Decode, cut and return one image, uint8, and its label."""
        image, label = self._folder[index]
        return image, label

    def all_labels(self) -> Tensor:
        """Return the labels of all images."""
        return torch.tensor([label for _, label in self._folder.samples])


def imagenet_folder(root: Path) -> Path:
    """Return `root/imagenet` when it exists, else `root`; it must hold ImageNet's 1,000 classes.

    Raises:
        DataError: another number of classes.
    """
    folder = root / "imagenet" if (root / "imagenet").is_dir() else root
    if (count := len(_classes(folder))) != 1000:
        raise DataError(
            f"{folder / 'train'} has {count} classes, ImageNet has 1000; for other data use "
            "'image-folder'"
        )
    return folder


def _classes(root: Path) -> list[str]:
    """List the classes, which are the folders in `train/`; `val/` must have the same ones."""
    listed = {}
    for name in _FOLDERS.values():
        folder = root / name
        if not folder.is_dir():
            raise DataError(
                f"there is no folder {folder}: the data root must hold train/CLASS/IMAGE and "
                "val/CLASS/IMAGE"
            )
        listed[name] = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    # ImageFolder numbers the classes of each folder on its own: a difference would shift labels.
    if differing := set(listed["train"]) ^ set(listed["val"]):
        raise DataError(
            f"{root / 'train'} and {root / 'val'} must have the same class folders; "
            f"only one of them has {sorted(differing)[:5]}"
        )
    return listed["train"]


def _transform(image_size: int, random_crop: bool) -> torch.nn.Module:
    from torchvision.transforms import v2

    if random_crop:
        cut: list[torch.nn.Module] = [v2.RandomResizedCrop(image_size)]
    else:
        cut = [v2.Resize(image_size * 8 // 7), v2.CenterCrop(image_size)]
    transform: torch.nn.Module = v2.Compose([*cut, v2.PILToTensor()])
    return transform
