"""Deal a workload's examples to this rank, batch by batch."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

from gsdist.errors import ConfigError
from gsdist.training import randomness
from gsdist.training.config import TrainConfig
from gsdist.training.device import to_device
from gsdist.training.inherited_connections import close_inherited_connections
from gsdist.training.sampling import EvaluationShard, TrainingBatches
from gsdist.workloads import Workload

__all__ = ["DataFeed"]

_LOADER = 3
"""Tells the stream of random numbers apart from the trainer's own."""


class DataFeed:
    """Open a workload's data and yield this rank's share of it, prepared and on its device."""

    def __init__(self, workload: Workload, config: TrainConfig, device: torch.device) -> None:
        """Open the data sets.

        Raises:
            ConfigError: an epoch has fewer batches than one step accumulates.
            GsdistError: what the workload raises about its data.
        """
        self._workload, self._config, self._device = workload, config, device
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._training_data = workload.training_dataset()
        self._evaluation_data = workload.evaluation_dataset()
        dealing = {
            "batch_size": config.batch_size,
            "rank": self._rank,
            "world_size": self._world_size,
            "seed": config.seed,
        }
        schedule = workload.training_batches(**dealing)
        if schedule is None:
            schedule = TrainingBatches(len(self._training_data), **dealing)  # type: ignore[arg-type]
        self._schedule = schedule
        self.steps_per_epoch = schedule.batches_per_epoch // config.accumulation
        if self.steps_per_epoch == 0:
            raise ConfigError(
                f"accumulation={config.accumulation}, but an epoch has only "
                f"{schedule.batches_per_epoch} batches per worker; lower accumulation or batch_size"
            )

    @property
    def name(self) -> str:
        """Return what the training data is called where the workload's settings do not say."""
        return type(self._training_data).__name__

    def training_batches(
        self, *, epoch: int, first_batch: int, augmentation: torch.Generator
    ) -> Iterator[Any]:
        """Yield the batches of an epoch from `first_batch` on."""
        self._schedule.epoch, self._schedule.first_batch = epoch, first_batch
        # A generator of its own: the loader draws a seed from it, which must not move the run's sources.
        draws = randomness.generator_for(self._config.seed, _LOADER, self._rank, epoch)
        pinned = self._device.type == "cuda"
        for batch in self._load(
            self._training_data, batch_sampler=self._schedule, pin_memory=pinned, generator=draws
        ):
            yield self._workload.prepare_batch(batch, training=True, generator=augmentation)

    def evaluation_batches(self) -> Iterator[Any]:
        """Yield this rank's shard of the evaluation data; all shards together are the whole."""
        shard = EvaluationShard(
            len(self._evaluation_data),  # type: ignore[arg-type]
            rank=self._rank,
            world_size=self._world_size,
        )
        for batch in self._load(
            self._evaluation_data,
            batch_size=self._config.batch_size,
            sampler=shard,
            generator=torch.Generator(),
        ):
            yield self._workload.prepare_batch(batch, training=False)

    def _load(self, data: Dataset[Any], **options: Any) -> Iterator[Any]:
        loader = DataLoader(
            data,
            num_workers=self._config.data_workers,
            collate_fn=self._workload.collate_function(),
            worker_init_fn=close_inherited_connections,
            **options,
        )
        for batch in loader:
            yield to_device(batch, self._device)
