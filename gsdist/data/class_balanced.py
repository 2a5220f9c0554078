"""Deal out batches that hold several images of each of their classes."""

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from gsdist.data.epoch_batches import EpochBatches
from gsdist.errors import ConfigError

__all__ = ["ClassBalancedBatches"]


class ClassBalancedBatches(EpochBatches):
    """Yield this worker's batches of indices of one epoch, beginning at `first_batch`.

    A batch holds `images_per_class` images of each of `batch_size / images_per_class` classes, chosen at
    random for every batch; batches of all workers at one step have no image in common. An epoch has as
    many batches as fit into the data, so it shows some images twice and others not at all. A pure function
    of seed, epoch and rank.

    Args:
        labels: int64 `(n,)`, the class of every example.
        images_per_class: images of each class of a batch.
        batch_size: examples per worker.
        rank: this worker.
        world_size: number of workers.
        seed: of the choices.

    Raises:
        ConfigError: batches that cannot be made from these labels.
    """

    def __init__(
        self,
        labels: Tensor,
        *,
        images_per_class: int,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
    ) -> None:
        classes = np.asarray(labels)
        super().__init__(len(classes) // (batch_size * world_size))
        members = [np.flatnonzero(classes == label) for label in np.unique(classes)]
        self._members = [own for own in members if len(own) >= images_per_class * world_size]
        self._classes_per_batch, left_over = divmod(batch_size, images_per_class)
        if left_over:
            raise ConfigError(
                f"batch_size={batch_size} must be a multiple of images_per_class={images_per_class}"
            )
        if self._classes_per_batch > len(self._members):
            raise ConfigError(
                f"batch_size={batch_size} with images_per_class={images_per_class} takes "
                f"{self._classes_per_batch} classes of at least {images_per_class * world_size} images and "
                f"the data has {len(self._members)}; lower batch_size or change images_per_class"
            )
        self._images_per_class = images_per_class
        self._rank = rank
        self._world_size = world_size
        self._seed = seed

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.first_batch, self.batches_per_epoch):
            yield self._batch(np.random.default_rng((self._seed, self.epoch, batch)))

    def _batch(self, generator: np.random.Generator) -> list[int]:
        """Choose for all workers, and return what is this one's."""
        chosen = [
            generator.permutation(len(self._members))[: self._classes_per_batch]
            for _ in range(self._world_size)
        ]
        shuffled = {
            number: generator.choice(
                self._members[number], (self._world_size, self._images_per_class), replace=False
            )
            for number in sorted({int(number) for classes in chosen for number in classes})
        }
        own = [shuffled[int(number)][self._rank] for number in chosen[self._rank]]
        batch: list[int] = np.concatenate(own).tolist()
        return batch
