"""Exchange gradients by gs-SGD: sum Count-Sketches, agree on the heavy coordinates, fetch their exact sums.

Source: gs-SGD (arXiv 2108.06004), of which only the abstract was at hand; this is a reconstruction,
see docs/decisions.md. Error feedback and the exact second round follow Sketched-SGD (arXiv 1903.04488,
section 3), momentum correction and factor masking follow DGC (arXiv 1712.01887, section 3.1).

=======  ==========================================================================
symbol   here
=======  ==========================================================================
e_i      residual: what this worker has not yet sent
u_i      momentum of this worker's gradient (momentum="local" only)
v_i      corrected gradient, e_i + u_i (or e_i + g_i), what the step would send
W_i      preselected coordinates: the p1*k largest of v_i
S        merged table: the sum of all workers' sketches
C        candidates: the p2*k coordinates with the largest estimates in S
K        selected coordinates: the k of C with the largest exact sums
p1, p2   preselect_factor, candidate_factor
=======  ==========================================================================

Collectives per step, all on one process group and in this order: an all-reduce of the table and a non-finite
flag; an all-reduce of exact values, dense set and agreement lanes. Warm-up steps need one all-reduce. When a
half-precision table overflows in the sum, the first is repeated in float32.
"""

import math
import struct
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any
from zlib import crc32

import torch
import torch.distributed as dist
from torch import Tensor

from gsdist.collectives import all_reduce_sum, require_agreement
from gsdist.errors import ConfigError, ConfigMismatch, NonFiniteGradient
from gsdist.reducers.agreement_lanes import all_agree, bit_lanes
from gsdist.reducers.gs_sgd_config import ExchangeSizes, GsSgdConfig
from gsdist.reducers.layout import FlatLayout, Segment
from gsdist.reducers.protocol import ExchangeStatistics, GradientBucket, MomentumCorrection
from gsdist.reducers.statistics import StatisticsRecorder
from gsdist.reducers.wire import TableWire
from gsdist.sketch import CountSketch, SketchFormat
from gsdist.sketch.select import compensate, top_k

__all__ = ["GsSgdReducer"]

_MASKING_LIMIT = 0.05
"""Density above which masking cancels more momentum than it protects (Sketched-SGD, section 5)."""
_USELESS_SHARE = 0.25
"""Share of the dense bytes above which a user is warned."""


class GsSgdReducer:
    """Average the heavy coordinates of the summed gradient, keep the rest for later steps.

    State per rank: residual and, with momentum correction, momentum, as flat vectors in the layout's order;
    both change only after both rounds of a step have passed.
    """

    def __init__(
        self,
        layout: FlatLayout,
        config: GsSgdConfig,
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
            ConfigError: no parameter is large enough to be sketched, or momentum does not fit the config.
        """
        if layout.sketched_size == 0:
            raise ConfigError(
                f"all {layout.numel} trainable parameters are in the dense set (min_numel="
                f"{config.min_numel}, dense_parameters={config.dense_parameters}); lower min_numel or use "
                "the dense reducer"
            )
        if (momentum is not None) != (config.momentum == "local"):
            raise ConfigError(
                f'momentum is "{config.momentum}" but the optimizer\'s momentum was '
                f"{'taken' if momentum else 'not taken'} over; pass optimizer= to attach exactly when "
                'momentum is "local"'
            )
        self._layout = layout
        self._config = config
        self._group = group
        self._world_size = dist.get_world_size(group)
        self._momentum_correction = momentum
        self._loss_scaled = loss_scaled
        self._fingerprint = crc32(repr((asdict(config), layout.fingerprint(), momentum)).encode())
        self._wire = TableWire(config.wire_dtype)
        self._recorder = StatisticsRecorder(dense_bytes_per_step=4 * layout.numel)
        self._step = 0
        self._residual = torch.zeros(layout.sketched_size)
        self._corrected = torch.zeros(layout.sketched_size)
        self._dense = torch.zeros(layout.dense_size)
        self._momentum = torch.zeros(layout.sketched_size) if momentum else None
        self._dense_momentum = torch.zeros(layout.dense_size) if momentum else None
        self._mask: Tensor | None = None
        self._dense_mask: Tensor | None = None
        self._sizes = ExchangeSizes.of(config, config.density, layout)
        self._sketch = self._new_sketch()
        self._begin_step()
        self._warn_if_useless()

    def _warn_if_useless(self) -> None:
        cell_bytes = 4 if self._config.wire_dtype == "float32" else 2
        table_bytes = cell_bytes * self._config.rows * self._sizes.columns
        share = (table_bytes + 4 * self._sizes.candidates) / (4 * self._layout.sketched_numel)
        if share > _USELESS_SHARE and dist.get_rank(self._group) == 0:
            warnings.warn(
                f"gs-SGD sends {share:.0%} of the bytes of a dense exchange with density="
                f"{self._config.density}, rows={self._config.rows}, column_factor="
                f"{self._config.column_factor}, candidate_factor={self._config.candidate_factor}; lower "
                "them, or use the dense reducer",
                stacklevel=4,
            )

    # ---- one step -----------------------------------------------------------------------------------

    def push(self, bucket: GradientBucket, *, scale: float = 1.0) -> None:
        """Take one bucket; unless clipping must wait for the whole norm, work on it at once."""
        self._scale = scale
        self._pending.append(bucket)
        if self._config.clip_norm is None:
            self._gradient_factor = 1.0 / scale
            self._absorb(bucket)

    def _absorb(self, bucket: GradientBucket) -> None:
        """Form the corrected gradient of one bucket and, when the whole vector is sketched, sketch it."""
        with self._recorder.phase("compensate"):
            for slice_ in bucket.slices:
                gradient = slice_.gradient.to(torch.float32)
                if slice_.segment.sketched:
                    self._finite &= self._compensate(slice_.segment.offset, gradient)
                else:
                    target = slice_.segment.flat_view(self._dense)
                    torch.mul(gradient, self._gradient_factor, out=target)
        if self._sketches_on_push():
            with self._recorder.phase("encode"):
                for slice_ in bucket.slices:
                    if slice_.segment.sketched:
                        part = slice_.segment.flat_view(self._corrected)
                        self._sketch.encode(part, slice_.segment.offset)

    def _absorb_clipped(self, clip_norm: float) -> None:
        """Clip this worker's gradient to clip_norm / sqrt(world size) and absorb it (DGC, section 3.1)."""
        norms = torch.stack([torch.linalg.vector_norm(b.buffer.float()) for b in self._pending])
        norm = float(torch.linalg.vector_norm(norms)) / self._scale
        limit = clip_norm / math.sqrt(self._world_size)
        clip = limit / norm if norm > limit else 1.0
        self._gradient_factor = clip / self._scale
        for bucket in self._pending:
            self._absorb(bucket)

    def finish(self) -> None:
        """Run the collectives of the step and leave the averages in the pushed buffers.

        Raises:
            NonFiniteGradient: some rank's gradient is not finite and the policy is "raise".
            ConfigMismatch: ranks disagree about step, configuration or candidates.

        Both are raised on every rank, with all state as it was before the step.
        """
        self._require_complete()
        if self._config.clip_norm is not None:
            self._absorb_clipped(self._config.clip_norm)
        if self._dense_mask is not None:
            self._dense.mul_(self._dense_mask)
        self._finite &= bool(torch.isfinite(self._dense).all())
        if self._config.density_at(self._step) is None:
            applied = self._exchange_whole()
        else:
            applied = self._exchange_sketched()
        self._recorder.end_step(skipped=not applied)
        if applied:
            self._step += 1
            self._begin_step()
        else:
            self._give_up()

    def _begin_step(self) -> None:
        self._pending: list[GradientBucket] = []
        self._finite = True
        self._scale = 1.0
        self._gradient_factor = 1.0
        density = self._config.density_at(self._step) or self._config.density
        self._sizes = ExchangeSizes.of(self._config, density, self._layout)
        if self._sketch.format.columns != self._sizes.columns:
            self._sketch = self._new_sketch()
        else:
            self._sketch.zero_()

    def _new_sketch(self) -> CountSketch[Tensor]:
        sketch_format = SketchFormat(
            rows=self._config.rows,
            columns=self._sizes.columns,
            seed=self._config.seed,
            dimension=self._layout.sketched_size,
        )
        return CountSketch(sketch_format, torch.zeros(sketch_format.table_shape))

    def _sketches_on_push(self) -> bool:
        warming_up = self._config.density_at(self._step) is None
        whole = self._config.preselect_factor == 0
        return whole and not self._config.deterministic and not warming_up

    def _compensate(self, offset: int, gradient: Tensor) -> bool:
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

    def _require_complete(self) -> None:
        pushed = sum(len(bucket.slices) for bucket in self._pending)
        assert pushed == len(self._layout.segments), f"{pushed} parameters were pushed"

    # ---- warm-up: everything travels ----------------------------------------------------------------

    def _exchange_whole(self) -> bool:
        size = self._layout.sketched_size
        buffer = torch.cat([self._corrected, self._dense, self._flag_and_lanes(candidates=None)])
        with self._recorder.phase("allreduce_dense"):
            self._all_reduce(buffer, "the warm-up exchange")
        flag_at = size + self._layout.dense_size
        if not self._accepts(buffer[flag_at + 1 :], flag=buffer[flag_at], sums=buffer[:flag_at]):
            return False
        self._commit(selected=None)
        self._hand_back(buffer[:size], None, buffer[size:flag_at])
        return True

    # ---- the two rounds of gs-SGD -------------------------------------------------------------------

    def _exchange_sketched(self) -> bool:
        self._complete_sketch()
        if not self._merge_tables():
            return False
        with self._recorder.phase("select"):
            candidates, _ = self._sketch.heavy_hitters(self._sizes.candidates)
            values = self._corrected[candidates]
        buffer = torch.cat([values, self._dense, self._flag_and_lanes(candidates)])
        with self._recorder.phase("allreduce_values"):
            self._all_reduce(buffer, "the exchange of exact values")
        flag_at = candidates.numel() + self._layout.dense_size
        if not self._accepts(buffer[flag_at + 1 :], flag=buffer[flag_at], sums=buffer[:flag_at]):
            return False
        sums = buffer[: candidates.numel()]
        with self._recorder.phase("select"):
            best = top_k(sums, min(self._sizes.selected, sums.numel()))
        selected = candidates[best]
        self._commit(selected)
        self._hand_back(sums[best], selected, buffer[candidates.numel() : flag_at])
        return True

    def _complete_sketch(self) -> None:
        if self._sketches_on_push():
            return
        with self._recorder.phase("encode"):
            if not self._finite:
                return  # the flag discards the step; selection needs finite values
            if self._config.preselect_factor == 0:
                self._sketch.encode(self._corrected)
            else:
                chosen = top_k(self._corrected, self._sizes.preselected)
                self._sketch.encode_sparse(chosen, self._corrected[chosen])

    def _merge_tables(self) -> bool:
        """Sum the tables of all ranks; tell whether the step may go on, alike on every rank."""
        table = self._sketch.table
        assert isinstance(table, Tensor)
        with self._recorder.phase("allreduce_table"):
            buffer = self._wire.pack(table, flag=not self._finite)
            self._all_reduce(buffer, "the exchange of tables")
            if (
                buffer[-1] == 0
                and not torch.isfinite(buffer).all()
                and buffer.dtype != torch.float32
            ):
                buffer = self._wire.pack(table, flag=not self._finite, exact=True)
                self._all_reduce(buffer, "the exchange of tables")
            if buffer[-1] != 0 or not torch.isfinite(buffer).all():
                return False
            self._wire.unpack(buffer, table)
        return True

    # ---- agreement ----------------------------------------------------------------------------------

    def _flag_and_lanes(self, candidates: Tensor | None) -> Tensor:
        self._agreed = {
            "step": self._step,
            "configuration": self._fingerprint,
            "loss scale": crc32(struct.pack("<d", self._scale)),
            "candidates": 0 if candidates is None else crc32(candidates.numpy().data),
        }
        flag = torch.tensor([float(not self._finite)])
        return torch.cat([flag, bit_lanes(list(self._agreed.values()))])

    def _accepts(self, lanes: Tensor, *, flag: Tensor, sums: Tensor) -> bool:
        """Judge a reduced buffer from its bits alone, so that every rank judges alike."""
        if not all_agree(lanes, self._world_size):
            require_agreement(self._agreed, self._group, subject="state of the exchange")
            raise ConfigMismatch("the agreement lanes of the exchange were damaged in transport")
        return bool(flag == 0) and bool(torch.isfinite(sums).all())

    def _all_reduce(self, buffer: Tensor, phase: str) -> None:
        self._recorder.sent(buffer)
        all_reduce_sum(buffer, self._group, phase=phase)

    # ---- results ------------------------------------------------------------------------------------

    def _commit(self, selected: Tensor | None) -> None:
        """Advance residual and momentum; `selected=None` means everything was sent."""
        with self._recorder.phase("apply"):
            if self._momentum is not None:
                self._advance_momentum(selected)
            self._residual, self._corrected = self._corrected, self._residual
            if selected is None:
                self._residual.zero_()
            else:
                self._residual[selected] = 0.0

    def _advance_momentum(self, selected: Tensor | None) -> None:
        assert self._momentum is not None and self._momentum_correction is not None
        self._momentum.mul_(self._momentum_correction.factor)
        for bucket in self._pending:
            for slice_ in bucket.slices:
                if slice_.segment.sketched:
                    target = slice_.segment.flat_view(self._momentum)
                    target.add_(slice_.gradient.to(torch.float32), alpha=self._gradient_factor)
        if self._mask is not None:
            self._momentum.mul_(self._mask)
        density = self._config.density_at(self._step)
        if selected is not None and density is not None:
            if self._config.masking and density <= _MASKING_LIMIT:
                self._momentum[selected] = 0.0

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

    def _hand_back(self, sums: Tensor, selected: Tensor | None, dense_sums: Tensor) -> None:
        """Write averages into the buffers; `selected=None` means `sums` holds all coordinates."""
        with self._recorder.phase("apply"):
            dense = self._dense_update(dense_sums) * self._scale
            sums.mul_(self._scale / self._world_size)
            for bucket in self._pending:
                if selected is not None:
                    bucket.buffer.zero_()
                for slice_ in bucket.slices:
                    segment, gradient = slice_.segment, slice_.gradient
                    if not segment.sketched:
                        gradient.copy_(segment.flat_view(dense))
                    elif selected is None:
                        gradient.copy_(segment.flat_view(sums))
                    else:
                        _scatter(gradient, segment, selected, sums)

    def _give_up(self) -> None:
        """Leave a step that no rank applies: state untouched, the policy decides what is returned."""
        raises = not self._loss_scaled and self._config.non_finite == "raise"
        if not raises:
            for bucket in self._pending:
                bucket.buffer.fill_(math.inf if self._loss_scaled else 0.0)
        finite = self._finite
        self._begin_step()
        if raises:
            rank = dist.get_rank(self._group)
            raise NonFiniteGradient(
                f"rank {rank}/{self._world_size} step {self._step}: some rank's gradient holds NaN or "
                f"infinity (this rank's {'does not' if finite else 'does'}); no residual, momentum or "
                "parameter was changed. Lower the learning rate, clip gradients, or pass grad_scaler= "
                '(mixed precision) or non_finite="skip"'
            )

    # ---- state --------------------------------------------------------------------------------------

    @property
    def last_step_skipped(self) -> bool:
        """Tell whether all ranks gave the last step up because a gradient was not finite."""
        return self._recorder.last_step_skipped

    def statistics(self) -> ExchangeStatistics:
        """Return the counters of this rank."""
        return self._recorder.snapshot(
            residual_norm=float(torch.linalg.vector_norm(self._residual))
        )

    def set_mask(self, mask: Mapping[str, Tensor] | None) -> None:
        """Zero masked coordinates of residual and momentum now and of gradients from now on."""
        if mask is None:
            self._mask = self._dense_mask = None
            return
        self._mask = torch.ones(self._layout.sketched_size)
        self._dense_mask = torch.ones(self._layout.dense_size)
        for segment in self._layout:
            if segment.name in mask:
                vector = self._mask if segment.sketched else self._dense_mask
                segment.shaped_view(vector).copy_(mask[segment.name])
        self._residual.mul_(self._mask)
        if self._momentum is not None and self._dense_momentum is not None:
            self._momentum.mul_(self._mask)
            self._dense_momentum.mul_(self._dense_mask)

    def state_dict(self) -> dict[str, Any]:
        """Return step, table peak, residual and momentum; tensors keyed by parameter name."""
        state: dict[str, Any] = {
            "step": self._step,
            "table_peak": self._wire.peak,
            "statistics": self._recorder.state_dict(),
            "residual": self._layout.unflatten(sketched=self._residual, dense=None),
        }
        if self._momentum is not None:
            state["momentum"] = self._layout.unflatten(
                sketched=self._momentum, dense=self._dense_momentum
            )
        return state

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
            state["residual"], sketched=self._residual, dense=None, subject="saved residual"
        )
        if self._momentum is not None:
            self._layout.flatten_into(
                state["momentum"],
                sketched=self._momentum,
                dense=self._dense_momentum,
                subject="saved momentum",
            )
        self._step = int(state["step"])
        self._wire.peak = float(state["table_peak"])
        self._recorder.load_state_dict(state["statistics"])
        self._begin_step()


def _scatter(gradient: Tensor, segment: Segment, selected: Tensor, values: Tensor) -> None:
    """Write the values of those ascending flat indices that fall into one parameter."""
    ends = torch.tensor([segment.offset, segment.stop])
    first, last = torch.searchsorted(selected, ends).tolist()
    gradient[selected[first:last] - segment.offset] = values[first:last].to(gradient.dtype)
