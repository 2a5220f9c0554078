"""Hold labelled images as uint8 tensors with what is needed to prepare batches of them."""

import abc
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["ImageArrays", "ImageDataset", "ImageFormat", "few_of_each_class"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFormat:
    """Describe the images of one data set and how batches of them are usually prepared."""

    num_classes: int
    """Labels run from 0 to num_classes - 1."""
    channels: int
    """Colour channels."""
    image_size: int
    """Height and width in pixels."""
    mean: tuple[float, ...]
    """Mean of the training images per channel, pixel values scaled to [0, 1]."""
    std: tuple[float, ...]
    """Standard deviation likewise."""
    crop_padding: int = 0
    """Zero pixels added on each side before a random crop back to size; 0 = no such crop."""
    flip: bool = False
    """Whether a mirrored image keeps its class, so that random horizontal flips help."""


class ImageDataset(Dataset[tuple[Tensor, int]], abc.ABC):
    """Give `(image, label)` by index: uint8 `(channels, image_size, image_size)` and an int."""

    format: ImageFormat

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int) -> tuple[Tensor, int]: ...

    @abc.abstractmethod
    def all_labels(self) -> Tensor:
        """Return the labels of all images, int64 `(n,)`, without decoding any."""


class ImageArrays(ImageDataset):
    """Keep a whole data set in memory.

    Args:
        images: uint8 `(n, image_size, image_size, channels)`; used without copying.
        labels: int64 `(n,)`.
        image_format: what they are.
    """

    def __init__(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64], image_format: ImageFormat
    ) -> None:
        assert len(images) == len(labels)
        self.format = image_format
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2)
        self.labels = torch.from_numpy(labels)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return one image, uint8 and contiguous, and its label."""
        return self.images[index].contiguous(), int(self.labels[index])

    def all_labels(self) -> Tensor:
        """Return the labels of all images."""
        return self.labels


class _ImageSubset(ImageDataset):
    def __init__(self, whole: ImageDataset, indices: list[int]) -> None:
        self.format = whole.format
        self._whole = whole
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._whole[self._indices[index]]

    def all_labels(self) -> Tensor:
        return self._whole.all_labels()[self._indices]


def few_of_each_class(data: ImageDataset, per_class: int, seed: int) -> ImageDataset:
    """Return a data set of `per_class` images of each class, chosen at random by `seed`.

    A class that has fewer gives all it has.
    """
    order = np.random.default_rng(seed).permutation(len(data))
    labels = data.all_labels().numpy()[order]
    chosen = [order[labels == label][:per_class] for label in np.unique(labels)]
    return _ImageSubset(data, np.sort(np.concatenate(chosen)).tolist())
