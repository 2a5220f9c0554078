"""Prune what a workload trains: a callback of the trainer around a pruner."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gsdist.compaction import CompactModel
from gsdist.errors import UnsupportedSetup
from gsdist.training.callback import Callback
from gsdist.training.run_config import RunConfig
from gsdist.workloads import LayoutChange, Workload
from gsdist.workloads.pruning import Pruner, PruningConfig
from gsdist.workloads.weights import load_weights

__all__ = ["PRUNING_FILE", "PruningCallback", "example_arguments", "open_callback"]

PRUNING_FILE = "pruning.json"


class PruningCallback(Callback):
    """Prune after every epoch as the settings say.

    Args:
        config: what is pruned, when and how.
        workload: whose model it is.
        epochs: how often `epoch_ended` will be called in the whole run.
    """

    active = True

    def __init__(self, config: PruningConfig, workload: Workload, epochs: int) -> None:
        self._config = config
        self._workload = workload
        self._epochs = epochs
        self._epoch = 0

    def begin(self, model: nn.Module) -> None:
        """Load pretrained weights and trace the network.

        Raises:
            CheckpointError: the weights are those of another network.
            UnsupportedSetup: the network cannot be pruned.
        """
        if self._config.pretrained is not None:
            load_weights(model, self._config.pretrained)
        example = example_arguments(self._workload, model)
        self.pruner = Pruner(model, example, self._config, total_events=self._epochs)

    def train_begins(self) -> None:
        """Prune before the first epoch where the method does. Collectives: as `Pruner.on_epoch_end`."""
        self.pruner.on_train_begin()

    def epoch_ended(self, epoch: int) -> LayoutChange | None:
        """Prune, and make the network smaller when it is time. Collectives: as `Pruner.on_epoch_end`."""
        self._epoch = epoch + 1
        self.pruner.on_epoch_end(epoch)
        return self._make_smaller() if epoch == self.pruner.compaction_event else None

    def _make_smaller(self) -> LayoutChange:
        compact: CompactModel = self.pruner.compact()
        self.pruner.continue_with(compact)
        return LayoutChange(model=compact.model, kept=compact.kept)

    def coordinate_mask(self) -> Mapping[str, Tensor] | None:
        """Return the pruner's mask of hard filters."""
        return self.pruner.coordinate_mask

    def replicated_loss(self) -> Tensor | None:
        """Return the penalty on the scales of normalisations, where the method has one."""
        return self.pruner.sparsity_loss(self._epoch)

    def measures(self) -> Mapping[str, float]:
        """Return the pruner's step and ratios."""
        return self.pruner.measures()

    def files(self) -> Mapping[str, str]:
        """Return what is kept of each layer, for `gsdist compact`."""
        return {PRUNING_FILE: json.dumps(self.pruner.outcome(), indent=1) + "\n"}

    def state_dict(self) -> dict[str, Any]:
        """Return the pruner's state and the number of epochs done."""
        return {"pruner": self.pruner.state_dict(), "epoch": self._epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> LayoutChange | None:
        """Restore it; make the network small again if it was."""
        self._epoch = state["epoch"]
        self.pruner.load_state_dict(state["pruner"])
        return self._make_smaller() if state["pruner"]["compacted"] else None


def open_callback(run: RunConfig, workload: Workload, epochs: int) -> Callback:
    """Return what acts between the epochs of a run; without pruning, nothing does.

    Raises:
        UnsupportedSetup: pruning together with outer steps.
    """
    if run.pruning is None:
        return Callback()
    if run.train.outer_interval is not None:
        raise UnsupportedSetup(
            "pruning decides on the weights that all workers share, and with outer_interval they share "
            "them only now and then; leave outer_interval or --prune out"
        )
    return PruningCallback(run.pruning, workload, epochs)


def example_arguments(workload: Workload, model: nn.Module) -> tuple[Any, ...]:
    """Return what the workload passes to its model when it evaluates two items."""
    loader = DataLoader(workload.evaluation_dataset(), batch_size=2, generator=torch.Generator())
    batch = workload.prepare_batch(next(iter(loader)), training=False)
    seen: list[tuple[Any, ...]] = []
    hook = model.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    try:
        workload.evaluate(model, [batch])
    finally:
        hook.remove()
    return seen[0]
