"""Read Fashion-MNIST from torchvision's folder or from where the Debian package puts it."""

import gzip
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gsdist.data.download import debian_package_files, place_file, staging_folder
from gsdist.data.images import ImageFormat
from gsdist.errors import DataError

__all__ = ["DEBIAN_FOLDER", "FORMAT", "PACKAGE", "PUBLISHED", "fetch", "load"]

PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FORMAT = ImageFormat(
    num_classes=10,
    channels=1,
    image_size=28,
    mean=(0.2860,),
    std=(0.3530,),
    crop_padding=2,
    flip=True,
)
PUBLISHED = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""SHA-256 of each file after decompression: the carriers compress the same files differently."""
_IMAGE_HEADER_BYTES = 16
_LABEL_HEADER_BYTES = 8


def load(
    split: Literal["train", "test"],
    root: Path,
    *,
    debian_folder: Path = DEBIAN_FOLDER,
    checksums: Mapping[str, str] = PUBLISHED,
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read images `(n, 28, 28, 1)` uint8 and labels `(n,)` int64 of one split, verified.

    Looks for `FashionMNIST/raw/` below `root`, then for the files of the Debian package.

    Raises:
        DataError: not there, or not the published data.
    """
    folder = _folder(root, debian_folder)
    if folder is None:
        raise DataError(
            f"Fashion-MNIST is neither in {_own_folder(root)} nor in {debian_folder}: run "
            f"`gsdist data fashion-mnist` (it runs `apt-get download {PACKAGE}`, 31 MB), or as "
            f"root `apt-get install {PACKAGE}`"
        )
    prefix = "train" if split == "train" else "t10k"
    images = _read(folder, f"{prefix}-images-idx3-ubyte", checksums)[_IMAGE_HEADER_BYTES:]
    labels = _read(folder, f"{prefix}-labels-idx1-ubyte", checksums)[_LABEL_HEADER_BYTES:]
    return images.reshape(-1, 28, 28, 1), labels.astype(np.int64)


def fetch(
    root: Path,
    *,
    time_limit: float,
    debian_folder: Path = DEBIAN_FOLDER,
    checksums: Mapping[str, str] = PUBLISHED,
) -> Path:
    """Make sure that verified data can be found and return its folder.

    Raises:
        DataError: the data cannot be had, or is not the published one.
    """
    try:
        for split in ("train", "test"):
            load(split, root, debian_folder=debian_folder, checksums=checksums)
    except DataError:
        _download(root, time_limit, checksums)
    folder = _folder(root, debian_folder)
    assert folder is not None, "it was loaded or placed above"
    return folder


def _download(root: Path, time_limit: float, checksums: Mapping[str, str]) -> None:
    with staging_folder(root) as staging:
        files = debian_package_files(PACKAGE, staging, time_limit=time_limit)
        folder = files / DEBIAN_FOLDER.relative_to("/")
        for name in checksums:
            _read(folder, name, checksums)
        for name in checksums:
            place_file(folder / f"{name}.gz", _own_folder(root) / f"{name}.gz")


def _own_folder(root: Path) -> Path:
    return root / "FashionMNIST" / "raw"


def _folder(root: Path, debian_folder: Path) -> Path | None:
    for folder in (_own_folder(root), debian_folder):
        if folder.is_dir():
            return folder
    return None


def _read(folder: Path, name: str, checksums: Mapping[str, str]) -> NDArray[np.uint8]:
    compressed = folder / f"{name}.gz"
    path = compressed if compressed.exists() else folder / name
    try:
        content = path.read_bytes()
        if path == compressed:
            content = gzip.decompress(content)
    except (OSError, EOFError) as error:
        raise _damaged(path, str(error)) from error
    found = hashlib.sha256(content).hexdigest()
    if found != checksums[name]:
        raise _damaged(path, f"SHA-256 {found}, expected {checksums[name]}")
    # A bytearray is writable, as torch wants the memory of its tensors to be.
    return np.frombuffer(bytearray(content), np.uint8)


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path} does not hold the published Fashion-MNIST ({reason}); delete {path.parent} and "
        f"run `gsdist data fashion-mnist` (it runs `apt-get download {PACKAGE}`)"
    )
