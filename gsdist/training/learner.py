"""Hold what learns: the model, its DDP wrapper, the optimizer and the gradient exchange.

They refer to each other, so they are built together, and built anew together when the workload replaces
the model by a smaller one.
"""

import gc
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW, Optimizer

from gsdist.collectives import Nodes, find_nodes
from gsdist.errors import CheckpointError, UnsupportedSetup
from gsdist.integrations.ddp import ReducerState, attach
from gsdist.integrations.outer_step import OuterStep
from gsdist.reducers import ExchangeStatistics, ReducerConfig
from gsdist.training.callback import Callback
from gsdist.training.config import TrainConfig
from gsdist.training.launch import detect_launch
from gsdist.training.schedule import make_scheduler
from gsdist.training.stopwatch import Stopwatch
from gsdist.workloads import LayoutChange, LossParts, Workload
from gsdist.workloads.pruning import clear_masked_state

__all__ = ["Learner"]

_AUTOCAST = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Learner:
    """Take optimizer steps on a workload's model, with gradients exchanged by a reducer."""

    def __init__(
        self,
        workload: Workload,
        config: TrainConfig,
        reducer: ReducerConfig,
        *,
        total_steps: int,
        stopwatch: Stopwatch,
        callback: Callback,
        device: torch.device,
    ) -> None:
        """Build everything. Collectives: those of DDP's construction and of `attach`, or of `OuterStep`."""
        self._workload = workload
        self._config = config
        self._reducer = reducer
        self._total_steps = total_steps
        self._stopwatch = stopwatch
        self._callback = callback
        self._device = device
        self._dtype = _AUTOCAST[config.amp]
        self.learning_rate = 0.0
        """Learning rate of the last step."""
        self._scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")
        model = workload.build_model()
        callback.begin(model)
        self._wrap(model)

    def _wrap(self, model: nn.Module) -> None:
        # DDP's advice about 1x1 convolutions, whose strides say nothing; nobody can act on it.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        config = self._config
        self.model = model.to(self._device)
        self._optimizer = _make_optimizer(model, config)
        self._scheduler = make_scheduler(self._optimizer, config, self._total_steps)
        outer = config.outer_step()
        self._outer = (
            OuterStep(model, self._reducer, outer, optimizer=self._optimizer) if outer else None
        )
        self._ddp = None if self._outer else self._make_ddp(model)
        self._exchange = self._outer or self._attach()
        self._exchange.set_replicated_loss(self._replicated_loss)
        self._mask: Mapping[str, Tensor] | None = None
        self.update_mask()

    def _replicated_loss(self) -> Tensor | None:
        terms = (self._workload.replicated_loss(self.model), self._callback.replicated_loss())
        given = [term for term in terms if term is not None]
        return torch.stack(given).sum() if given else None

    def _make_ddp(self, model: nn.Module) -> DistributedDataParallel:
        return DistributedDataParallel(
            model,
            find_unused_parameters=self._config.find_unused_parameters,
            bucket_cap_mb=self._config.bucket_cap_mb,
        )

    def _attach(self) -> ReducerState:
        assert self._ddp is not None
        return attach(
            self._ddp,
            self._reducer,
            optimizer=self._optimizer,
            grad_scaler=self._scaler,
            nodes=_nodes(self._config),
        )

    # ---- one step -----------------------------------------------------------------------------------

    def step(self, batches: list[Any], number: int) -> dict[str, Tensor]:
        """Take optimizer step `number` (from 1) on prepared batches; return this rank's loss terms.

        The loss is the mean over the batches. Collectives: the exchange, in the last backward pass or, once
        in an outer interval, after the step.
        """
        terms = self._gradients(batches)
        with self._stopwatch.phase("optimizer"):
            if not self._exchange.last_step_skipped or self._scaler.is_enabled():
                self._update()
            if self._outer:
                self._outer.step(number, last=number == self._total_steps)
            self.learning_rate = float(self._scheduler.get_last_lr()[0])
            self._scheduler.step()
            self._optimizer.zero_grad()
            self._workload.after_step(self.model, number)
            change = self._workload.layout_change(self.model, number)
            if change is not None:
                self.change_layout(change)
            self.update_mask()
        return terms

    def _gradients(self, batches: list[Any]) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        for position, batch in enumerate(batches):
            last = position == len(batches) - 1
            with nullcontext() if last or self._ddp is None else self._ddp.no_sync():
                with self._stopwatch.phase("forward"):
                    parts = self._loss(batch)
                for name, part in parts.items():
                    share = part.detach() / len(batches)
                    terms[name] = terms[name] + share if name in terms else share
                with self._stopwatch.phase("backward"):
                    self._scaler.scale(parts.total / len(batches)).backward()  # type: ignore[no-untyped-call]
        return terms

    def _loss(self, batch: Any) -> LossParts:
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None):
            return self._workload.loss(self._ddp or self.model, batch)

    def _update(self) -> None:
        clip_norm = self._config.clip_norm
        clips_before = not self._outer and getattr(self._reducer, "clip_norm", None) is not None
        if clip_norm is not None and not clips_before:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()

    # ---- what a workload changes --------------------------------------------------------------------

    def update_mask(self) -> None:
        """Ask workload and callback which coordinates are trained, and clear all state of the others.

        Raises:
            UnsupportedSetup: both name some.
        """
        mask, more = self._workload.coordinate_mask(self.model), self._callback.coordinate_mask()
        if mask is not None and more is not None:
            raise UnsupportedSetup(
                f"the workload {self._workload.name!r} leaves coordinates untrained itself, so it cannot be "
                "pruned"
            )
        mask = more if mask is None else mask
        if mask is not self._mask:
            self._exchange.set_mask(mask)
            clear_masked_state(self._optimizer, dict(self.model.named_parameters()), mask)
            self._mask = mask

    def change_layout(self, change: LayoutChange) -> None:
        """Let a smaller model take over; momentum, residual and the like are cut to it.

        Raises:
            UnsupportedSetup: with outer steps or nodes.

        Collectives: those of building everything anew; some all-reduces.
        """
        if not isinstance(self._exchange, ReducerState) or self._config.node_size is not None:
            raise UnsupportedSetup(
                "the workload makes the model smaller, and with node_size or outer_interval the state of "
                "the exchange is not the same kind on all ranks; leave both unset"
            )
        old_parameters = dict(self.model.named_parameters())
        old_state = self._optimizer.state
        scheduler_state = self._scheduler.state_dict()
        learning_rates = [group["lr"] for group in self._optimizer.param_groups]
        exchange_state = _cut_named(
            self._exchange.state_for_new_layout(), old_parameters, change.kept
        )
        self._wrap(change.model)
        self._scheduler.load_state_dict(scheduler_state)
        for group, rate in zip(self._optimizer.param_groups, learning_rates, strict=True):
            group["lr"] = rate
        for name, parameter in change.model.named_parameters():
            old = old_parameters[name]
            self._optimizer.state[parameter] = {
                key: _cut(value, change.kept[name])
                if isinstance(value, Tensor) and value.shape == old.shape
                else value
                for key, value in old_state.get(old, {}).items()
            }
        self._exchange.load_state_dict(self._fitting(exchange_state))
        # The old DDP wrapper holds itself in cycles, and its hooks hold parameters both models share.
        gc.collect()

    def _fitting(self, state: dict[str, Any]) -> dict[str, Any]:
        """Make the state of parameters that are now too small to be compressed what the exchange expects.

        They keep no residual, and of their momentum the mean over ranks, as it is now applied to averages.
        Collectives: one all-reduce for each of them.
        """
        compressed = self._exchange.state_dict().get("residual", {})
        residual = state.get("residual", {})
        for name in sorted(set(residual) - set(compressed)):
            del residual[name]
            if "momentum" in state:
                dist.all_reduce(state["momentum"][name])
                state["momentum"][name] /= dist.get_world_size()
        return state

    # ---- what is read and saved ---------------------------------------------------------------------

    @property
    def num_parameters(self) -> int:
        """Return d, the number of trained parameters."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def statistics(self) -> ExchangeStatistics:
        """Return the counters of this rank's exchange."""
        return self._exchange.stats()

    def compression_of(self) -> dict[str, float]:
        """Return dense bytes over payload bytes of each part of the model that the workload tells apart."""
        statistics = self.statistics()
        steps = statistics.steps + statistics.skipped_steps
        dense: dict[str, float] = defaultdict(float)
        payload: dict[str, float] = defaultdict(float)
        for name, parameter in self.model.named_parameters():
            part = self._workload.part_of(name)
            if part is not None and name in statistics.payload_bytes_of:
                dense[part] += 4.0 * parameter.numel() * steps
                payload[part] += statistics.payload_bytes_of[name]
        return {part: size / payload[part] for part, size in dense.items() if payload[part]}

    def share_buffers(self) -> None:
        """Give every rank rank 0's buffers (running statistics), as DDP does before a forward pass.

        Collectives: one broadcast per dtype among the buffers.
        """
        buffers = [buffer for buffer in self.model.buffers() if buffer.numel()]
        for dtype in sorted({buffer.dtype for buffer in buffers}, key=str):
            same = [buffer for buffer in buffers if buffer.dtype == dtype]
            flat = torch.cat([buffer.reshape(-1) for buffer in same])
            dist.broadcast(flat, 0)
            parts = torch.split(flat, [buffer.numel() for buffer in same])
            for buffer, values in zip(same, parts, strict=True):
                buffer.copy_(values.view_as(buffer))

    def shared_parameters(self) -> AbstractContextManager[None]:
        """Let the model hold what all workers agree on; without outer steps it always does."""
        return self._outer.shared_parameters() if self._outer else nullcontext()

    def replicated_state(self) -> dict[str, Any]:
        """Return the state that is equal on all ranks; with outer steps, after their exchange only."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def own_state(self) -> dict[str, Any]:
        """Return this rank's state of the exchange and, with outer steps, of its own training."""
        exchange = self._exchange.state_dict()
        return {"exchange": exchange, "local": self.replicated_state()} if self._outer else exchange

    def inherited_state(
        self, first: Mapping[str, Any], states: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Return this rank's share of what another number of ranks had saved; load it next.

        Raises:
            CheckpointError: with outer steps, where every rank has parameters of its own.
        """
        if not isinstance(self._exchange, ReducerState):
            raise CheckpointError(
                "with outer steps every worker has parameters of its own, which others cannot take over; "
                "start as many workers as wrote the checkpoint"
            )
        return self._exchange.inherited_state(first, states)

    def load_state(self, replicated: Mapping[str, Any], own: Mapping[str, Any] | None) -> None:
        """Restore both; without `own` the exchange begins anew.

        Raises:
            CheckpointError: the state is of a model with other parameters, or `own` is missing with outer
                steps.
        """
        exchange = own
        if self._outer:
            if own is None:
                raise CheckpointError(
                    "with outer steps every worker has parameters of its own, which cannot be reset"
                )
            replicated, exchange = own["local"], own["exchange"]
        try:
            self.model.load_state_dict(replicated["model"])
        except RuntimeError as error:
            raise CheckpointError(
                f"the checkpoint's model is not the one the workload builds: {error}"
            ) from error
        self._optimizer.load_state_dict(replicated["optimizer"])
        self._scheduler.load_state_dict(replicated["scheduler"])
        self._scaler.load_state_dict(replicated["scaler"])
        if exchange is not None:
            self._exchange.load_state_dict(exchange)
        self.update_mask()


def _nodes(config: TrainConfig) -> Nodes | None:
    if config.node_size is None:
        return None
    if config.node_size == "launcher":
        return find_nodes(detect_launch().local_rank)
    return Nodes.of_equal_size(config.node_size, dist.get_world_size())


def _make_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    if config.optimizer == "adamw":
        return AdamW(
            model.parameters(),
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
        )
    return SGD(
        model.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )


def _cut(tensor: Tensor, kept: tuple[Tensor | None, ...]) -> Tensor:
    """Keep the given indices of each dimension; None keeps all."""
    for dimension, indices in enumerate(kept):
        if indices is not None:
            tensor = tensor.index_select(dimension, indices.to(tensor.device))
    return tensor.clone()


def _cut_named(
    state: Mapping[str, Any],
    old_parameters: Mapping[str, Tensor],
    kept: Mapping[str, tuple[Tensor | None, ...]],
) -> dict[str, Any]:
    """Cut every tensor that stands under a parameter's name; drop those of parameters that are gone."""
    result: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, Mapping):
            result[key] = _cut_named(value, old_parameters, kept)
        elif key in old_parameters and isinstance(value, Tensor):
            if key in kept:
                result[key] = _cut(value, kept[key])
        else:
            result[key] = value
    return result
