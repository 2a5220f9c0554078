"""Read the 8x8 digits that come with scikit-learn: no download, for tests and first steps."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gsdist.data.images import ImageFormat

__all__ = ["FORMAT", "load"]

FORMAT = ImageFormat(
    num_classes=10,
    channels=1,
    image_size=8,
    mean=(0.2874,),
    std=(0.3534,),
    crop_padding=1,
)
_TRAINING_IMAGES = 1437
_LEVEL = 15
"""Spreads the 17 grey levels 0..16 over 0..240, exactly."""


def load(split: Literal["train", "test"]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read images `(n, 8, 8, 1)` uint8 and labels `(n,)` int64.

    The first 1,437 of the 1,797 images are for training, the last 360 for testing; the set is
    ordered by writer, so most writers of the test images are new.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    part = slice(_TRAINING_IMAGES) if split == "train" else slice(_TRAINING_IMAGES, None)
    images = digits.images[part].astype(np.uint8) * np.uint8(_LEVEL)
    return images[..., None], digits.target[part].astype(np.int64)
