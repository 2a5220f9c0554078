"""Carry what all compressed exchange methods share: error feedback, momentum, dense set, one verdict.

A method adds one function, `_exchange`: corrected gradients in, sums of some coordinates out. Residual and
momentum change only after it has succeeded, on all ranks or on none. Momentum correction and masking follow
DGC (arXiv 1712.01887, section 3.1), error feedback Stich et al. (arXiv 1809.07599).
"""

import math
import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar
from zlib import crc32

import torch
import torch.distributed as dist
from torch import Tensor

from gsdist.collectives import (
    all_gather_equal,
    all_reduce_sum,
    gather_json,
    rank_of,
    require_agreement,
)
from gsdist.errors import ConfigError, ConfigMismatch, NonFiniteGradient
from gsdist.reducers.agreement_lanes import FlagAndLanes, all_agree
from gsdist.reducers.config import CompressedConfig, SparseConfig
from gsdist.reducers.finite import all_finite
from gsdist.reducers.layout import FlatLayout, Segment
from gsdist.reducers.protocol import ExchangeStatistics, GradientBucket, MomentumCorrection
from gsdist.reducers.statistics import StatisticsRecorder
from gsdist.sketch.on_device import compensate, top_k

__all__ = ["CompressedReducer", "Update"]

_AGREED_NAMES = ("step", "configuration", "loss scale", "candidates")
_AGREED = struct.Struct("<QIdI")
"""What all ranks must hold alike when they exchange."""
_MASKING_LIMIT = 0.05
"""Density above which masking cancels more momentum than it protects (Sketched-SGD, section 5)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """Say what all workers apply in a step, and what this worker has thereby sent."""

    sums: Tensor
    """Sums over workers of corrected gradients, at `indices`; float32."""
    indices: Tensor | None
    """Ascending flat coordinates, int64; None: all of them, as `_write_average` has them."""
    sent: Tensor | None
    """Coordinates that leave this worker's residual, int64; None: all of them."""
    dense_sums: Tensor
    """Sums over workers of the dense set's gradients."""


ConfigT = TypeVar("ConfigT", bound=CompressedConfig)


class CompressedReducer(ABC, Generic[ConfigT]):
    """Reduce by sending part of the corrected gradient and keeping the rest for later steps.

    State per rank: residual and, with momentum correction, momentum, as flat vectors in the layout's order.

    Collectives: those of the method's `_exchange`; in warm-up steps one all-reduce of the whole gradient.
    """

    def __init__(
        self,
        layout: FlatLayout,
        config: ConfigT,
        group: dist.ProcessGroup | None = None,
        *,
        momentum: MomentumCorrection | None = None,
        loss_scaled: bool = False,
    ) -> None:
        """Allocate the state.

        `momentum` is what to apply before compression, given exactly when config.momentum is "local".
        With `loss_scaled` a non-finite gradient is handed back as infinity on all ranks, as a loss scaler
        expects, and never raises.

        Raises:
            ConfigError: no parameter is large enough to be compressed, or momentum does not fit the config.
        """
        if layout.compressed_size == 0:
            raise ConfigError(
                f"all {layout.numel} trainable parameters are in the dense set (min_numel="
                f"{config.min_numel}, dense_parameters={config.dense_parameters}); lower min_numel or use "
                "the dense reducer"
            )
        if (momentum is not None) != (config.momentum == "local"):
            raise ConfigError(
                f'momentum is "{config.momentum}" but the momentum of the optimizer was '
                f"{'taken' if momentum else 'not taken'} over; pass optimizer= to attach exactly when "
                'momentum is "local"'
            )
        self._layout = layout
        self._config = config
        self._group = group
        self._rank, self._world_size = rank_of(group), dist.get_world_size(group)
        self._momentum_correction = momentum
        self._loss_scaled = loss_scaled
        self._fingerprint = crc32(repr((asdict(config), layout.fingerprint(), momentum)).encode())
        self._lanes = FlagAndLanes()
        self._recorder = StatisticsRecorder(dense_bytes_per_step=4 * layout.numel)
        self._step = 0
        self._device = layout.device
        self._residual = self._zeros(layout.compressed_size)
        self._corrected = self._zeros(layout.compressed_size)
        self._dense = self._zeros(layout.dense_size)
        self._momentum = self._zeros(layout.compressed_size) if momentum else None
        self._dense_momentum = self._zeros(layout.dense_size) if momentum else None
        self._mask: Tensor | None = None
        self._dense_mask: Tensor | None = None
        self._clear_step()
        self._allocate()

    # ---- what a method defines ----------------------------------------------------------------------

    @abstractmethod
    def _exchange(self) -> Update | None:
        """Exchange `_corrected` and `_dense`; None when all ranks give the step up.

        Must include `_flag_and_lanes` in a summed buffer and ask `_accepts` about the sum before any state
        changes.
        """

    def _allocate(self) -> None:
        """Make what the method needs besides; called once, at the end of construction."""

    def _begin_step(self) -> None:
        """Get ready for the first `push` of a step; called with `_step` set."""

    def _zeros(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return zeros where the parameters are."""
        return torch.zeros(shape, dtype=dtype, device=self._device)

    def _absorbed(self, segment: Segment) -> None:
        """Work on a compressed parameter's part of `_corrected` as soon as it is there, still in cache."""

    # ---- one step -----------------------------------------------------------------------------------

    def push(self, bucket: GradientBucket, *, scale: float = 1.0) -> None:
        """Take one bucket; unless clipping must wait for the whole norm, work on it at once."""
        if not self._pending:
            self._begin_step()
        self._scale = scale
        self._pending.append(bucket)
        if self._config.non_finite == "zero" and not self._loss_scaled:
            torch.nan_to_num(bucket.buffer, nan=0.0, posinf=0.0, neginf=0.0, out=bucket.buffer)
        if self._config.clip_norm is None:
            self._gradient_factor = 1.0 / scale
            self._absorb(bucket)

    def finish(self) -> None:
        """Run the collectives of the step and leave the averages in the pushed buffers.

        Raises:
            NonFiniteGradient: some rank's gradient is not finite and the policy is "raise".
            ConfigMismatch: ranks disagree about step, configuration or candidates.

        Both are raised on every rank, with all state as it was before the step.
        """
        pushed = sum(len(bucket.slices) for bucket in self._pending)
        assert pushed == len(self._layout.segments), f"{pushed} parameters were pushed"
        if self._config.clip_norm is not None:
            self._absorb_clipped(self._config.clip_norm)
        self._collect_dense()
        update = self._exchange_whole() if self._warming_up else self._exchange()
        self._recorder.end_step(self._numbers_of(update) if update else {}, skipped=update is None)
        if update is None:
            self._give_up()
            return
        with self._recorder.phase("apply"):
            self._commit(update)
            self._hand_back(update)
        self._step += 1
        self._clear_step()

    @property
    def _warming_up(self) -> bool:
        return self._step < self._config.warmup_steps

    def _clear_step(self) -> None:
        self._pending: list[GradientBucket] = []
        self._finite: bool | Tensor = True
        """Whether what is compressed is finite, so far; on a GPU a scalar until all is there."""
        self._scale = 1.0
        self._gradient_factor = 1.0

    def _absorb(self, bucket: GradientBucket) -> None:
        """Form the corrected gradient of one bucket."""
        for slice_ in bucket.slices:
            if slice_.segment.compressed:
                with self._recorder.phase("compensate"):
                    gradient = slice_.gradient.to(torch.float32)
                    self._finite = self._finite & self._compensate(slice_.segment.offset, gradient)
                self._absorbed(slice_.segment)

    def _own_top_k(self, count: int) -> Tensor:
        """Return the coordinates of this worker's `count` largest corrected gradients, ascending int64."""
        # A gradient that is not finite has no order; the step is given up in the next collective.
        if self._finite:
            return top_k(self._corrected, count)
        return torch.arange(count, device=self._device)

    def _collect_dense(self) -> None:
        """Put the gradients of the dense set in their places, all in one pass."""
        parts = {
            slice_.segment.name: slice_.gradient
            for bucket in self._pending
            for slice_ in bucket.slices
            if not slice_.segment.compressed
        }
        ordered = [parts[segment.name] for segment in self._layout.dense]
        if ordered:
            self._dense.copy_(torch.cat(ordered)).mul_(self._gradient_factor)
        if self._dense_mask is not None:
            self._dense.mul_(self._dense_mask)
        self._finite = bool(self._finite)  # a dense set that is not shows in its sum

    def _absorb_clipped(self, clip_norm: float) -> None:
        """Clip this worker's gradient to clip_norm * sqrt(world size) and absorb it.

        DGC, section 3.1, clips 1/P of its gradient, its share of the average, to clip_norm / sqrt(P).
        """
        norms = torch.stack([torch.linalg.vector_norm(b.buffer.float()) for b in self._pending])
        norm = float(torch.linalg.vector_norm(norms)) / self._scale
        limit = clip_norm * math.sqrt(self._world_size)
        self._gradient_factor = (limit / norm if norm > limit else 1.0) / self._scale
        for bucket in self._pending:
            self._absorb(bucket)

    def _compensate(self, offset: int, gradient: Tensor) -> bool | Tensor:
        stretch = slice(offset, offset + gradient.numel())
        correction = self._momentum_correction
        finite = compensate(
            self._corrected[stretch],
            self._residual[stretch],
            gradient,
            momentum=None if self._momentum is None else self._momentum[stretch],
            momentum_factor=correction.factor if correction else 0.0,
            nesterov=correction.nesterov if correction else False,
            scale=self._gradient_factor,
        )
        if self._mask is not None:
            self._corrected[stretch].mul_(self._mask[stretch])
        return finite

    def _exchange_whole(self) -> Update | None:
        """Exchange everything, as every method does during warm-up."""
        size = self._layout.compressed_size
        buffer = torch.cat([self._corrected, self._dense, self._flag_and_lanes(indices=None)])
        self._all_reduce(buffer, "allreduce_dense")
        sums = buffer[: size + self._layout.dense_size]
        if not self._accepts(buffer[sums.numel() :], finite=all_finite(sums)):
            return None
        return Update(sums=sums[:size], indices=None, sent=None, dense_sums=sums[size:])

    def _reduce_values(self, indices: Tensor) -> tuple[Tensor, Tensor] | None:
        """Sum the corrected gradients at agreed indices, and the dense set.

        Returns both sums, or None when all ranks give the step up. Collectives: one all-reduce.
        """
        return self._reduce_with_dense(self._corrected[indices], indices)

    def _reduce_with_dense(self, values: Tensor, agreed: Tensor) -> tuple[Tensor, Tensor] | None:
        """Sum some float32 values and the dense set while all ranks must hold the same `agreed`, int64.

        Returns and issues the same as `_reduce_values`.
        """
        buffer = torch.cat([values, self._dense, self._flag_and_lanes(agreed)])
        self._all_reduce(buffer, "allreduce_values")
        sums = buffer[: values.numel() + self._layout.dense_size]
        if not self._accepts(buffer[sums.numel() :], finite=all_finite(sums)):
            return None
        return sums[: values.numel()], sums[values.numel() :]

    # ---- agreement ----------------------------------------------------------------------------------

    def _flag_and_lanes(self, indices: Tensor | None) -> Tensor:
        """Return what, summed, tells every rank whether the step may be applied; float32."""
        candidates = 0 if indices is None else crc32(indices.cpu().numpy().data)
        self._agreed = (self._step, self._fingerprint, self._scale, candidates)
        lanes = self._lanes.of(not self._finite, _AGREED.pack(*self._agreed))
        return lanes.to(self._device)

    def _accepts(self, summed: Tensor, *, finite: bool) -> bool:
        """Judge a reduced buffer from its bits alone, so that every rank judges alike.

        `summed` are flag and lanes, `finite` tells whether all other sums are.

        Raises:
            ConfigMismatch: on every rank, when ranks disagree.
        """
        flag, *lanes = summed.tolist()
        if not all_agree(lanes, self._world_size):
            agreed = dict(zip(_AGREED_NAMES, self._agreed, strict=True))
            require_agreement(agreed, self._group, subject="state of the exchange")
            raise ConfigMismatch("the agreement lanes of the exchange were damaged in transport")
        return finite and flag == 0

    def _all_reduce(self, buffer: Tensor, phase: str) -> None:
        """Sum a buffer over the group, counted under a phase."""
        self._recorder.issued("ring_all_reduce", buffer)
        with self._recorder.phase(phase):
            all_reduce_sum(buffer, self._group, phase=f"step {self._step}, {phase}")

    def _all_gather(self, own: Tensor, phase: str) -> Tensor:
        """Gather equally long tensors as rows of a (ranks, length) tensor, counted under a phase."""
        self._recorder.issued("ring_all_gather", own)
        with self._recorder.phase(phase):
            return all_gather_equal(own, self._group, phase=f"step {self._step}, {phase}")

    def _numbers_of(self, update: Update) -> dict[str, int]:
        """Count, by parameter, the numbers that a step's sums are of."""
        numbers = {segment.name: segment.numel for segment in self._layout}
        if update.indices is not None:
            ranges = self._layout.ranges_of(update.indices)
            numbers |= {name: inside.stop - inside.start for name, inside in ranges.items()}
        return numbers

    # ---- results ------------------------------------------------------------------------------------

    def _commit(self, update: Update) -> None:
        """Advance momentum and residual."""
        if self._momentum is not None:
            self._advance_momentum(update)
        self._residual, self._corrected = self._corrected, self._residual
        self._remove_sent(update)

    def _remove_sent(self, update: Update) -> None:
        """Take what this worker has sent out of `_residual`, which holds the corrected gradient."""
        if update.sent is None:
            self._residual.zero_()
        else:
            self._residual[update.sent] = 0.0

    def _advance_momentum(self, update: Update) -> None:
        assert self._momentum is not None and self._momentum_correction is not None
        self._momentum.mul_(self._momentum_correction.factor)
        for bucket in self._pending:
            for slice_ in bucket.slices:
                if slice_.segment.compressed:
                    target = slice_.segment.flat_view(self._momentum)
                    target.add_(slice_.gradient.to(torch.float32), alpha=self._gradient_factor)
        if self._mask is not None:
            self._momentum.mul_(self._mask)
        if update.sent is not None and self._masks_momentum:
            self._momentum[update.sent] = 0.0

    @property
    def _masks_momentum(self) -> bool:
        config: CompressedConfig = self._config
        if not isinstance(config, SparseConfig):
            return False
        return config.masking and config.density_at(self._step) <= _MASKING_LIMIT

    def _dense_update(self, summed: Tensor) -> Tensor:
        """Average the dense set and apply to it the momentum the optimizer no longer applies."""
        average = summed / self._world_size
        correction = self._momentum_correction
        if correction is None or self._dense_momentum is None:
            return average
        self._dense_momentum.mul_(correction.factor).add_(average)
        if not correction.nesterov:
            return self._dense_momentum
        return average.add_(self._dense_momentum, alpha=correction.factor)

    def _hand_back(self, update: Update) -> None:
        """Write the (scaled) averages into the pushed buffers."""
        dense = self._dense_update(update.dense_sums) * self._scale
        factor = self._scale / self._world_size
        ranges = {} if update.indices is None else self._layout.ranges_of(update.indices)
        for bucket in self._pending:
            if update.indices is not None:
                bucket.buffer.zero_()
            for slice_ in bucket.slices:
                segment, gradient = slice_.segment, slice_.gradient
                if not segment.compressed:
                    gradient.copy_(segment.flat_view(dense))
                elif update.indices is None:
                    self._write_average(segment, gradient, update, factor)
                else:
                    inside = ranges[segment.name]
                    places = update.indices[inside] - segment.offset
                    gradient[places] = (update.sums[inside] * factor).to(gradient.dtype)

    def _write_average(
        self, segment: Segment, gradient: Tensor, update: Update, factor: float
    ) -> None:
        """Write factor times the sums of one compressed parameter into its 1-D gradient."""
        torch.mul(segment.flat_view(update.sums), factor, out=gradient)

    def _give_up(self) -> None:
        """Leave a step that no rank applies: state untouched, the policy decides what is returned."""
        raises = not self._loss_scaled and self._config.non_finite != "skip"
        if not raises:
            for bucket in self._pending:
                bucket.buffer.fill_(math.inf if self._loss_scaled else 0.0)
        culprits = self._non_finite_parameters() if raises else ""
        self._clear_step()
        if raises:
            raise NonFiniteGradient(
                f"rank {self._rank}/{self._world_size} step {self._step}: {culprits}; no residual, momentum "
                "or parameter was changed. Lower the learning rate, clip gradients, or pass grad_scaler= "
                '(mixed precision) or non_finite="skip"'
            )

    def _non_finite_parameters(self) -> str:
        """Say whose gradient of which parameter is not finite. Collectives: two all-gathers."""
        spoilt = {
            slice_.segment.name
            for bucket in self._pending
            for slice_ in bucket.slices
            if not torch.isfinite(slice_.gradient).all()
        }
        own = [segment.name for segment in self._layout if segment.name in spoilt]
        found = [
            f"rank {rank}'s gradient of {', '.join(names[:3])}{' and others' if len(names) > 3 else ''}"
            for rank, names in enumerate(gather_json(own, self._group))
            if names
        ]
        if not found:
            return "the sum of all ranks' gradients is too large for float32"
        return f"NaN or infinity in {'; '.join(found)}"

    # ---- state --------------------------------------------------------------------------------------

    @property
    def last_step_skipped(self) -> bool:
        """Tell whether all ranks gave the last step up because a gradient was not finite."""
        return self._recorder.last_step_skipped

    def statistics(self) -> ExchangeStatistics:
        """Return the counters of this rank."""
        return self._recorder.snapshot(residual_norm=float(torch.linalg.vector_norm(self._kept())))

    def _kept(self) -> Tensor:
        """Return what this worker has kept back as one flat vector."""
        return self._residual

    def set_mask(self, mask: Mapping[str, Tensor] | None) -> None:
        """Zero masked coordinates of residual and momentum now and of gradients from now on."""
        if mask is None:
            self._mask = self._dense_mask = None
            return
        self._mask = self._zeros(self._layout.compressed_size).fill_(1.0)
        self._dense_mask = self._zeros(self._layout.dense_size).fill_(1.0)
        for segment in self._layout:
            if segment.name in mask:
                vector = self._mask if segment.compressed else self._dense_mask
                segment.shaped_view(vector).copy_(mask[segment.name])
        self._residual.mul_(self._mask)
        if self._momentum is not None and self._dense_momentum is not None:
            self._momentum.mul_(self._mask)
            self._dense_momentum.mul_(self._dense_mask)

    def state_dict(self) -> dict[str, Any]:
        """Return step, counters, residual and momentum; tensors keyed by parameter name."""
        return self._state(self._residual)

    def state_for_new_layout(self) -> dict[str, Any]:
        """Return the same with all that this worker has kept in the residual, and nothing of the method."""
        return self._state(self._kept())

    def _state(self, residual: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = {
            "step": self._step,
            "statistics": self._recorder.state_dict(),
            "residual": self._layout.unflatten(compressed=residual, dense=None),
        }
        if self._momentum is not None:
            state["momentum"] = self._layout.unflatten(
                compressed=self._momentum, dense=self._dense_momentum
            )
        return state

    def inherited_state(
        self, first: Mapping[str, Any], states: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Return the first rank's state with the sums of the others' residuals and momenta."""
        kept_by_each = {segment.name for segment in self._layout.compressed}
        inherited = dict(first)
        for key in {"residual", "momentum"} & set(first):
            inherited[key] = {
                # momentum of the dense set is that of averages, and alike on all ranks
                name: sum((one[key][name] for one in states), torch.zeros_like(tensor))
                if name in kept_by_each
                else tensor
                for name, tensor in first[key].items()
            }
        return inherited

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned on this rank.

        Raises:
            ConfigError: the state is of another model or of another kind of momentum.
        """
        if ("momentum" in state) != (self._momentum is not None):
            raise ConfigError(
                f'momentum is "{self._config.momentum}" but the saved state '
                f"{'holds' if 'momentum' in state else 'holds no'} local momentum; resume with the "
                "momentum setting of the run that saved it"
            )
        self._layout.flatten_into(
            state["residual"], compressed=self._residual, dense=None, subject="saved residual"
        )
        if self._momentum is not None:
            self._layout.flatten_into(
                state["momentum"],
                compressed=self._momentum,
                dense=self._dense_momentum,
                subject="saved momentum",
            )
        self._step = int(state["step"])
        self._recorder.load_state_dict(state["statistics"])
        self._clear_step()
