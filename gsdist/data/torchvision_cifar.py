"""Read CIFAR-10 and CIFAR-100 from the folders that torchvision unpacks, verified by its checksums."""

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gsdist.data.images import ImageFormat
from gsdist.errors import DataError

__all__ = ["CIFAR10_FOLDER", "CIFAR100_FORMAT", "load_cifar100", "read_batches"]

CIFAR10_FOLDER = "cifar-10-batches-py"
_CIFAR100_FOLDER = "cifar-100-python"
CIFAR100_FORMAT = ImageFormat(
    num_classes=100,
    channels=3,
    image_size=32,
    mean=(0.5071, 0.4867, 0.4408),
    std=(0.2675, 0.2565, 0.2761),
    crop_padding=4,
    flip=True,
)


def load_cifar100(
    split: Literal["train", "test"], root: Path
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read images `(n, 32, 32, 3)` uint8 and fine labels `(n,)` int64 of one split, verified.

    Raises:
        DataError: not there, or not the published data.
    """
    if not (root / _CIFAR100_FOLDER).is_dir():
        raise DataError(
            f"CIFAR-100 is not in {root}: unpack cifar-100-python.tar.gz of its authors there, or name a "
            f"data root that holds torchvision's {_CIFAR100_FOLDER}/"
        )
    return read_batches("CIFAR100", split, root, advice="delete it and unpack the archive anew")


def read_batches(
    name: Literal["CIFAR10", "CIFAR100"],
    split: Literal["train", "test"],
    root: Path,
    *,
    advice: str,
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read one split with torchvision's class of that name.

    Raises:
        DataError: not the published data; ends with the advice.
    """
    from torchvision import datasets

    kind = getattr(datasets, name)
    try:
        data = kind(str(root), train=split == "train", download=False)
    except RuntimeError as error:
        raise DataError(
            f"{root / kind.base_folder} does not hold the published {name} ({error}); {advice}"
        ) from error
    return data.data, np.array(data.targets, np.int64)
