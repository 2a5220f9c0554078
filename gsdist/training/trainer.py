"""Run a workload: batches in, steps, evaluations, records and checkpoints, until it is done."""

import logging
import math
import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

import gsdist
from gsdist.collectives import (
    FLIGHT_RECORDER,
    require_agreement,
    set_deadline,
    share_faults,
    transport_failures,
)
from gsdist.errors import ConfigError
from gsdist.training import metrics, randomness
from gsdist.training.device import to_device
from gsdist.training.feed import DataFeed
from gsdist.training.learner import Learner
from gsdist.training.monitor import RankMonitor, Report, parameter_hash
from gsdist.training.progress import open_progress
from gsdist.training.pruning import open_callback
from gsdist.training.run_config import CONFIG_FILE, RunConfig, flatten
from gsdist.training.selection import BestWeights
from gsdist.training.signals import EXIT_TERMINATED, watch_signals
from gsdist.training.stopwatch import Stopwatch
from gsdist.training.summary import EXCHANGE, SUMMARY_FILE, RunSummary, curves_of
from gsdist.training.versions import required_versions, warn_of_differences
from gsdist.workloads import Workload

if TYPE_CHECKING:
    from gsdist.training.checkpoint import CheckpointStore

__all__ = ["Trainer"]

_logger = logging.getLogger(__name__)
_CPU = torch.device("cpu")
_TRAINING_PHASES = ("data", "forward", "backward", "optimizer")
_DROPOUT, _AUGMENTATION = 1, 2
"""Tell apart the streams of random numbers that one seed begets."""
_MONITOR_INTERVAL, _MONITOR_MOST = 10, 1000
"""Steps between two looks at the other ranks; those between outer steps have nothing else to wait for."""


class Trainer:
    """Train one workload on all workers of the open default process group.

    Writes config.toml, metrics.jsonl and summary.json to the run directory (rank 0) and checkpoints as
    configured. All methods must be called on every rank.
    """

    def __init__(self, run: RunConfig, workload: Workload, device: torch.device = _CPU) -> None:
        """Check that all ranks run the same, open the data and build what learns, on a device.

        Raises:
            ConfigMismatch: ranks differ in settings or versions; on every rank.
            GsdistError: a subclass that says what is wrong with data, model or settings.

        Collectives: agreements, and those of `Learner`.
        """
        self._run = run
        self._config = config = run.train
        self._workload = workload
        self._device = device
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        require_agreement({**flatten(run.tables()), **required_versions()})
        warn_of_differences({"torch": torch.__version__, "gsdist": gsdist.__version__})
        if config.deterministic:
            torch.use_deterministic_algorithms(True)
        self._stopwatch = Stopwatch()
        with share_faults():
            exchange = run.exchange()
            self._feed = DataFeed(workload, config, device)
            self._steps_per_epoch = self._feed.steps_per_epoch
            self._total_steps = config.steps or config.epochs * self._steps_per_epoch
            epochs = math.ceil(self._total_steps / self._steps_per_epoch)
            self._callback = open_callback(run, workload, epochs)
            randomness.seed_everything(config.seed)
        self._learner = Learner(
            workload,
            config,
            exchange,
            total_steps=self._total_steps,
            stopwatch=self._stopwatch,
            callback=self._callback,
            device=device,
        )
        # Dropout and augmentation draw from sources that differ between workers.
        randomness.seed_everything(randomness.derive_seed(config.seed, _DROPOUT, self._rank))
        self._augmentation = randomness.generator_for(config.seed, _AUGMENTATION, self._rank)
        self._step = 0
        self._epoch = 0
        self._batch = 0
        self._unlogged: list[dict[str, Tensor]] = []
        self._best = BestWeights(workload.selection_metric)
        least = config.outer_interval or _MONITOR_INTERVAL
        self._monitor = RankMonitor(least, max(least, config.compare_every or _MONITOR_MOST))
        self._ranks: Report | None = None
        self._in_first_step = True
        self._saved_at: int | None = None
        self._store = _open_store(run) if config.checkpoint_every or config.resume else None

    # ---- the run ------------------------------------------------------------------------------------

    def run(self) -> RunSummary:
        """Train to the end, from the start or from the newest checkpoint, and return the summary.

        On SIGTERM to any rank, all of them end a few steps later, with a checkpoint if there are to be any.

        Raises:
            CheckpointError: the checkpoints there do not fit this run, or one cannot be written.
            GsdistError: what the exchange raises, alike on every rank.
            SystemExit: the run was ended by SIGTERM; on every rank.

        Collectives: those of the exchange in every step; a few all-reduces per record and evaluation; an
        all-gather beside every few steps.
        """
        FLIGHT_RECORDER.file = self._config.run_dir / f"collectives-rank{self._rank}.txt"
        try:
            with watch_signals() as self._signals, transport_failures("a collective of training"):
                return self._run_to_the_end()
        finally:
            FLIGHT_RECORDER.file = None

    def _run_to_the_end(self) -> RunSummary:
        resumed = self._resume()
        if resumed is None:
            self._callback.train_begins()
            self._learner.update_mask()
        self._open_outputs(resumed)
        try:
            results = None
            while self._step < self._total_steps:
                results = self._train_epoch()
            if results is None:
                results = self._evaluate()
            return self._finish(results)
        finally:
            self._progress.close()
            for writer in self._writers:
                writer.close()

    def _train_epoch(self) -> dict[str, float] | None:
        """Train to the end of the epoch or run; return the metrics if it ended with an evaluation."""
        config = self._config
        batches = self._feed.training_batches(
            epoch=self._epoch, first_batch=self._batch, augmentation=self._augmentation
        )
        while True:
            with self._stopwatch.phase("data"):
                step_batches = [next(batches) for _ in range(config.accumulation)]
            self._unlogged.append(self._learner.step(step_batches, self._step + 1))
            self._advance()
            done = self._step == self._total_steps
            epoch_ended = self._batch == 0
            loss = None
            if self._step % config.log_every == 0 or done:
                loss = self._log_training()
            self._progress.advance(self._step, loss)
            every = config.evaluate_every
            due = epoch_ended if every is None else self._step % every == 0
            unmasked = {}
            if self._callback.active and (epoch_ended or done):
                unmasked = self._end_epoch(evaluate=due or done)
            results = self._evaluate(unmasked) if due or done else None
            if config.checkpoint_every and (self._step % config.checkpoint_every == 0 or done):
                self._save()
            self._compare_ranks(last=done)
            if done or epoch_ended:
                return results

    def _end_epoch(self, *, evaluate: bool) -> dict[str, float]:
        """Let the callback act; return the metrics before, if wanted. Collectives: buffers, and its own."""
        before = self._run.pruning is not None and self._run.pruning.evaluate_unmasked
        results = self._measure() if evaluate and before else {}
        with self._stopwatch.phase("callback"):
            self._learner.share_buffers()
            finished = self._epoch if self._batch else self._epoch - 1
            change = self._callback.epoch_ended(finished)
            if change is not None:
                self._learner.change_layout(change)
            self._learner.update_mask()
        return {f"unmasked_{name}": value for name, value in results.items()}

    def _compare_ranks(self, *, last: bool) -> None:
        """Look at the other ranks when it is time to, and stop if one is asked to."""
        config, monitor = self._config, self._monitor
        if not monitor.due(self._step) and not last:
            return
        compares = config.compare_every and monitor.passed(self._step, config.compare_every)
        hashed = None
        if compares or last:
            with self._learner.shared_parameters():
                hashed = parameter_hash(self._learner.model.parameters())
        self._ranks = monitor.exchange(
            self._step,
            stop=self._signals.stop_requested,
            waited=FLIGHT_RECORDER.seconds,
            seconds=self._training_seconds(),
            parameters=hashed,
        )
        if last:
            monitor.finish()
        elif self._ranks is not None and self._ranks.stop:
            if config.checkpoint_every and self._saved_at != self._step:
                self._save()
            if self._store is not None:
                self._store.finish()
            self._progress.note(f"stopped after step {self._step} by SIGTERM")
            raise SystemExit(EXIT_TERMINATED)

    def _advance(self) -> None:
        if self._in_first_step:
            set_deadline(timedelta(seconds=self._config.timeout))
            self._in_first_step = False
        self._step += 1
        self._batch += self._config.accumulation
        if self._batch == self._steps_per_epoch * self._config.accumulation:
            self._epoch, self._batch = self._epoch + 1, 0

    # ---- evaluation and records ---------------------------------------------------------------------

    def _evaluate(self, more: dict[str, float] | None = None) -> dict[str, float]:
        """Measure, and record it with `more`. Collectives: as `_measure`."""
        results = self._measure()
        with self._learner.shared_parameters():
            self._best.offer(results, self._learner.model)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in results.items())
        results |= {**(more or {}), **self._callback.measures()}
        self._record({"kind": "evaluation", "seconds": self._training_seconds(), **results})
        self._progress.note(f"step {self._step}: evaluation  {shown}")
        return results

    def _measure(self) -> dict[str, float]:
        """Evaluate on all ranks. Collectives: buffers; one all-reduce."""
        with self._stopwatch.phase("evaluate"):
            self._learner.share_buffers()
            with self._learner.shared_parameters():
                shares = self._workload.evaluate(
                    self._learner.model, self._feed.evaluation_batches()
                )
            names = sorted(shares)
            sums = torch.tensor([shares[name] for name in names], dtype=torch.float64)
            dist.all_reduce(sums)
        return {
            name: total / max(1.0, count)
            for name, (total, count) in zip(names, sums.tolist(), strict=True)
        }

    def _log_training(self) -> float:
        """Record the mean loss since the last record. Collectives: one all-reduce."""
        names = sorted(self._unlogged[0])
        rows = torch.stack(
            [torch.stack([terms[name] for name in names]) for terms in self._unlogged]
        )
        means = rows.double().mean(0)
        dist.all_reduce(means)
        self._unlogged.clear()
        parts = dict(zip(names, (means / self._world_size).tolist(), strict=True))
        loss = math.fsum(parts.values())
        statistics = self._learner.statistics()
        self._record(
            {
                "kind": "train",
                "loss": loss,
                **(
                    {f"loss/{name}": value for name, value in parts.items()}
                    if len(parts) > 1
                    else {}
                ),
                "learning_rate": self._learner.learning_rate,
                "residual_norm": statistics.residual_norm,
                "dense_bytes": statistics.dense_bytes,
                "repeated_sums": statistics.repeated_sums,
                "seconds": self._training_seconds(),
                **{
                    f"wait_ms/{rank}": wait
                    for rank, wait in enumerate(self._ranks.wait_ms if self._ranks else ())
                },
            }
        )
        return loss

    def _record(self, record: dict[str, Any]) -> None:
        record |= {
            "step": self._step,
            "epoch": self._epoch,
            "payload_bytes": self._learner.statistics().payload_bytes,
        }
        for writer in self._writers:
            writer.write(record)

    def _training_seconds(self) -> float:
        return sum(self._stopwatch.seconds.get(phase, 0.0) for phase in _TRAINING_PHASES)

    # ---- outputs ------------------------------------------------------------------------------------

    def _open_outputs(self, resumed_at: int | None) -> None:
        config = self._config
        self._writers: list[metrics.MetricWriter] = []
        if self._rank == 0:
            config.run_dir.mkdir(parents=True, exist_ok=True)
            _write(config.run_dir / CONFIG_FILE, self._run.to_toml())
            self._writers = metrics.open_writers(
                config.run_dir,
                after_step=resumed_at,
                wandb_project=config.wandb_project,
                settings=self._run.tables(),
            )
        self._progress = open_progress(
            self._total_steps,
            enabled=config.progress and self._rank == 0,
            label=self._run.reducer_name,
            start=self._step,
        )
        if resumed_at is not None:
            self._progress.note(f"resumed after step {resumed_at}")

    def _finish(self, results: dict[str, float]) -> RunSummary:
        if self._store is not None:
            self._store.finish()
        model = self._learner.model
        results = self._best.restore(model) or results
        final = None
        if self._rank == 0:
            with self._stopwatch.phase("evaluate"):
                final = self._workload.final_measures(model)
        statistics = self._learner.statistics()
        seconds = self._stopwatch.seconds | {
            EXCHANGE + phase: value for phase, value in statistics.seconds.items()
        }
        training_seconds = self._training_seconds()
        summary = RunSummary(
            workload=self._workload.name,
            model=getattr(self._run.workload, "model", type(model).__name__),
            data=getattr(self._run.workload, "data", self._feed.name),
            reducer=self._run.reducer_name,
            world_size=self._world_size,
            num_parameters=self._learner.num_parameters,
            steps=self._step,
            steps_per_s=self._step / training_seconds if training_seconds else 0.0,
            primary_metric=self._workload.primary_metric,
            metrics=results | dict(final.metrics if final else {}),
            payload_bytes_run=statistics.payload_bytes,
            dense_bytes_run=statistics.dense_bytes,
            payload_bytes_last_step=statistics.payload_bytes_last_step,
            skipped_steps=statistics.skipped_steps,
            phase_seconds=seconds,
            curves={},
            config=self._run.tables(),
            config_hash=self._run.fingerprint(),
            versions={"gsdist": gsdist.__version__, "torch": torch.__version__},
            picture=final.picture if final else None,
            compression_of=self._learner.compression_of(),
        )
        if self._rank == 0:
            directory = self._config.run_dir
            summary.curves.update(curves_of(metrics.read_records(directory / metrics.FILE_NAME)))
            _write(directory / SUMMARY_FILE, summary.to_json())
            for name, text in self._callback.files().items():
                _write(directory / name, text)
            if self._config.save_model is not None:
                self._config.save_model.parent.mkdir(parents=True, exist_ok=True)
                torch.save(model.state_dict(), self._config.save_model)
        return summary

    # ---- checkpoints --------------------------------------------------------------------------------

    def _save(self) -> None:
        assert self._store is not None
        self._saved_at = self._step
        with self._stopwatch.phase("checkpoint"):
            self._store.save(
                self._step,
                replicated={
                    "learner": self._learner.replicated_state(),
                    "callback": self._callback.state_dict(),
                    "position": {"step": self._step, "epoch": self._epoch, "batch": self._batch},
                    "best": self._best.state_dict(),
                },
                own={
                    "exchange": self._learner.own_state(),
                    "randomness": randomness.capture(self._augmentation),
                    "unlogged": self._unlogged,
                    "seconds": self._stopwatch.seconds,
                },
            )

    def _resume(self) -> int | None:
        """Restore the newest checkpoint if there is one and it is wanted; return its step."""
        if not self._config.resume:
            self._refuse_foreign_checkpoints()
            return None
        assert self._store is not None
        found = self._store.newest()
        if found is None:
            return None
        loaded = self._store.load(found)
        replicated = loaded.replicated
        self._set_position(replicated["position"], found.world_size)
        if self._callback.active:
            change = self._callback.load_state_dict(replicated["callback"])
            if change is not None:
                self._learner.change_layout(change)
        self._best.load_state_dict(replicated["best"])
        learner = replicated["learner"]
        if loaded.own is not None:
            own = loaded.own
            self._learner.load_state(learner, own["exchange"])
            self._unlogged = to_device(own["unlogged"], self._device)
            self._stopwatch.seconds.update(own["seconds"])
            randomness.restore(own["randomness"], self._augmentation)
            return self._step
        exchange = None
        if loaded.first is None:
            _logger.warning("going on after step %d WITHOUT the residuals: reset", self._step)
        else:
            exchange = self._learner.inherited_state(
                loaded.first["exchange"], [one["exchange"] for one in loaded.inherited]
            )
        self._learner.load_state(learner, exchange)
        # No worker's random numbers go on here; none may be drawn a second time.
        fresh = (self._config.seed, self._rank, self._step)
        randomness.seed_everything(randomness.derive_seed(*fresh, _DROPOUT))
        self._augmentation = randomness.generator_for(*fresh, _AUGMENTATION)
        return self._step

    def _set_position(self, position: dict[str, int], world_size: int) -> None:
        """Go to where the run was; with other workers to about the same example of the epoch."""
        self._step, self._epoch, self._batch = (
            position[name] for name in ("step", "epoch", "batch")
        )
        if world_size == self._world_size:
            return
        if self._config.steps is None:
            raise ConfigError(
                f"the checkpoint is of {world_size} worker(s), this run has {self._world_size}, and an epoch "
                "has another number of steps; give steps in place of epochs to go on with other workers"
            )
        seen = self._batch * world_size // self._world_size
        steps = min(seen // self._config.accumulation, self._steps_per_epoch - 1)
        self._batch = steps * self._config.accumulation

    def _refuse_foreign_checkpoints(self) -> None:
        with share_faults():
            if self._config.checkpoint_every and any(self._config.checkpoints.glob("step-*")):
                raise ConfigError(
                    f"{self._config.checkpoints} already holds checkpoints; continue them with resume "
                    "(--resume), delete them, or name another run_dir or checkpoint_dir"
                )


def _open_store(run: RunConfig) -> "CheckpointStore":
    # torch.distributed.checkpoint takes a second to import, and many runs save nothing.
    from gsdist.training.checkpoint import CheckpointStore

    return CheckpointStore(
        run.train.checkpoints,
        keep=run.train.keep,
        config=run.course(),
        config_hash=run.fingerprint(),
        residual=run.train.residual,
        asynchronous=run.train.checkpoint_async,
    )


def _write(path: Path, text: str) -> None:
    """Write a file in one step, so that no reader sees half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)
