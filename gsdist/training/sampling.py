"""Deal the data out to the workers, from any batch of any epoch on."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from gsdist.data.epoch_batches import EpochBatches
from gsdist.errors import ConfigError
from gsdist.training.randomness import generator_for

__all__ = ["EvaluationShard", "TrainingBatches"]


class TrainingBatches(EpochBatches):
    """Yield this worker's batches of indices of one epoch, beginning at `first_batch`.

    Every epoch is a fresh permutation of all examples, a pure function of seed and epoch. Worker r takes
    entries r, r+P, r+2P, ...; what does not fill a batch on every worker is left out of that epoch.
    """

    def __init__(
        self, examples: int, *, batch_size: int, rank: int, world_size: int, seed: int
    ) -> None:
        """Raise ConfigError when the data does not fill one batch per worker."""
        super().__init__(examples // (world_size * batch_size))
        if self.batches_per_epoch == 0:
            raise ConfigError(
                f"batch_size={batch_size} on {world_size} worker(s) needs {world_size * batch_size} training "
                f"examples and the data set has {examples}; lower batch_size"
            )
        self._examples = examples
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
        self._seed = seed

    def __iter__(self) -> Iterator[list[int]]:
        generator = generator_for(self._seed, self.epoch)
        order = torch.randperm(self._examples, generator=generator)[self._rank :: self._world_size]
        for batch in range(self.first_batch, self.batches_per_epoch):
            yield order[batch * self._batch_size : (batch + 1) * self._batch_size].tolist()


class EvaluationShard(Sampler[int]):
    """Yield every P-th index: each example is evaluated once, by one worker, none twice."""

    def __init__(self, examples: int, *, rank: int, world_size: int) -> None:
        self._indices = range(rank, examples, world_size)

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)
