"""Search PFGDF's interval of every layer of a trained network: narrow, recover, measure, layer by layer."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from gsdist.errors import ConfigError
from gsdist.training.pruning import example_arguments
from gsdist.training.run_config import RunConfig
from gsdist.training.trainer import Trainer
from gsdist.workloads import Workload
from gsdist.workloads.pruning import PRESETS, Pruner, PruningConfig
from gsdist.workloads.pruning.pfgdf import search_intervals
from gsdist.workloads.weights import load_weights

__all__ = ["IntervalSearch"]


class IntervalSearch:
    """Try intervals by short trainings, each of which goes on from the last one that was good enough.

    Needs a process group; with several workers the folder is one that all of them see.

    Args:
        run: settings of the trained network, with `save_model`; data, batches and exchange are those of the
            trials, too.
        workload: what it trains.
        folder: where weights and the records of the newest trial go.
        epochs: of recovery in each trial.
        learning_rate: constant, in each trial.
        on_trial: called with the intervals tried and the metric reached.
        device: that trains.

    Source: arXiv 2006.12963, whose search is known by its abstract only; reconstructed.
    """

    def __init__(
        self,
        run: RunConfig,
        workload: Workload,
        folder: Path,
        *,
        epochs: int,
        learning_rate: float,
        on_trial: Callable[[Mapping[str, float], float], None],
        device: torch.device,
    ) -> None:
        assert run.train.save_model is not None
        self._workload, self._device = workload, device
        self._weights, self._trial = run.train.save_model, folder / "trial.pt"
        self._accepted = folder / "model.pt"
        self._last: Mapping[str, float] | None = None
        self._kept: tuple[str, int] | None = None
        self._metric = 0.0
        self._on_trial = on_trial
        train = replace(
            run.train,
            epochs=epochs,
            steps=None,
            learning_rate=learning_rate,
            schedule="constant",
            lr_warmup_steps=0,
            evaluate_every=10**9,
            checkpoint_every=0,
            resume=False,
            seeds=None,
            progress=False,
            wandb_project=None,
            run_dir=folder / "trial",
            save_model=self._trial,
        )
        self._run = replace(run, train=train, pruning=None)

    def search(self, least: float) -> PruningConfig:
        """Find for each layer the smallest interval that keeps the workload's metric at `least`.

        Returns settings that prune to these intervals and begin with the weights of the last trial.

        Raises:
            ConfigError: no interval keeps it.
            UnsupportedSetup: the network cannot be pruned.

        Collectives: those of a training per trial.
        """
        found = search_intervals(self._layers(), self._recover, least=least)
        if not found:
            raise ConfigError(
                f"no interval of any layer keeps {self._workload.primary_metric} at {least:.4g}; allow a "
                "larger loss, or more epochs of recovery"
            )
        self._accept(found)
        return self._pruning(found)

    def _layers(self) -> list[str]:
        return self._pruner(PRESETS["pfgdf"]).layers

    def _recover(self, intervals: Mapping[str, float]) -> float:
        """Prune to these intervals, train, and return the metric.

        Where the same filters are kept as in the last trial, its metric is returned.
        """
        *before, (layer, _) = intervals.items()
        self._accept(dict(before))
        pruning = self._pruning(intervals)
        pruner = self._pruner(pruning)
        pruner.on_train_begin()
        kept = layer, pruner.fingerprint()
        if kept != self._kept:
            run = replace(self._run, pruning=pruning)
            self._metric = Trainer(run, self._workload, self._device).run().primary
            self._on_trial(intervals, self._metric)
        self._last, self._kept = dict(intervals), kept
        return self._metric

    def _pruner(self, pruning: PruningConfig) -> Pruner:
        model = self._workload.build_model()
        load_weights(model, self._weights)
        example = example_arguments(self._workload, model)
        return Pruner(model, example, pruning, total_events=1)

    def _accept(self, intervals: Mapping[str, float]) -> None:
        """Go on from the last trial if it was of these intervals. Collectives: a barrier."""
        if intervals != self._last:
            return
        if dist.get_rank() == 0:
            self._trial.replace(self._accepted)
        dist.barrier()
        self._weights, self._last = self._accepted, None

    def _pruning(self, intervals: Mapping[str, float]) -> PruningConfig:
        entries = tuple(f"{layer}={interval:g}" for layer, interval in intervals.items())
        return replace(PRESETS["pfgdf"], intervals=entries, pretrained=self._weights)
