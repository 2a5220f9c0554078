"""Exchange the whole gradient by all-reduce: the baseline every other method is measured against.

Collectives: one all-reduce per pushed bucket, overlapping with backward; with `deterministic=True` one
all-reduce of the flat vector in `finish`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gsdist.collectives import all_reduce_sum, start_all_reduce_sum
from gsdist.reducers.layout import FlatLayout
from gsdist.reducers.protocol import ExchangeStatistics, GradientBucket
from gsdist.reducers.statistics import StatisticsRecorder
from gsdist.reducers.wire import WireDtype, require_wire_dtype, torch_dtype

__all__ = ["DenseConfig", "DenseReducer"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseConfig:
    """Configure the dense exchange."""

    wire_dtype: WireDtype = "float32"
    """Precision in which gradients travel and are summed."""
    deterministic: bool = False
    """Sum one flat vector at the end of backward: a restarted run gives the same bits."""

    def __post_init__(self) -> None:
        """Check the fields."""
        require_wire_dtype(self.wire_dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pending:
    """Hold a pushed bucket and, unless it waits for the flat reduction, its all-reduce under way."""

    bucket: GradientBucket
    wire: Tensor | None = None
    wait: Callable[[], None] | None = None


class DenseReducer:
    """Average gradients by all-reduce."""

    def __init__(
        self, layout: FlatLayout, config: DenseConfig, group: dist.ProcessGroup | None = None
    ) -> None:
        self._layout = layout
        self._dtype = torch_dtype(config.wire_dtype)
        self._deterministic = config.deterministic
        self._group = group
        self._world_size = dist.get_world_size(group)
        self._pending: list[_Pending] = []
        self._mask: dict[str, Tensor] = {}
        self._recorder = StatisticsRecorder(dense_bytes_per_step=4 * layout.numel)

    def push(self, bucket: GradientBucket, *, scale: float = 1.0) -> None:
        """Start the all-reduce of one bucket; `scale` needs no care, a sum is linear."""
        for slice_ in bucket.slices:
            if slice_.segment.name in self._mask:
                slice_.gradient.mul_(self._mask[slice_.segment.name])
        if self._deterministic:
            self._pending.append(_Pending(bucket=bucket))
            return
        wire = self._to_wire(bucket.buffer)
        self._recorder.issued("ring_all_reduce", wire)
        wait = start_all_reduce_sum(wire, self._group, phase="the dense exchange")
        self._pending.append(_Pending(bucket=bucket, wire=wire, wait=wait))

    def finish(self) -> None:
        """Wait for all buckets and leave the averages in their buffers."""
        with self._recorder.phase("allreduce_dense"):
            if self._deterministic:
                self._reduce_flat()
            else:
                for pending in self._pending:
                    assert pending.wire is not None and pending.wait is not None
                    pending.wait()
                    self._from_wire(pending.wire, pending.bucket.buffer)
        self._pending.clear()
        self._recorder.end_step({segment.name: segment.numel for segment in self._layout})

    @property
    def last_step_skipped(self) -> bool:
        """Tell whether all ranks gave the last step up because a gradient was not finite."""
        return self._recorder.last_step_skipped

    def statistics(self) -> ExchangeStatistics:
        """Return the counters of this rank."""
        return self._recorder.snapshot(residual_norm=0.0)

    def set_mask(self, mask: Mapping[str, Tensor] | None) -> None:
        """Zero the gradient of masked coordinates."""
        segments = {segment.name: segment for segment in self._layout}
        self._mask = {}
        for name, kept in (mask or {}).items():
            flat = torch.empty(segments[name].numel, dtype=torch.bool, device=self._layout.device)
            flat.as_strided(segments[name].shape, segments[name].stride).copy_(kept)
            self._mask[name] = flat

    def state_dict(self) -> dict[str, Any]:
        """Return the counters; the method itself has no state."""
        return {"statistics": self._recorder.state_dict()}

    def state_for_new_layout(self) -> dict[str, Any]:
        """Return the counters."""
        return self.state_dict()

    def inherited_state(
        self, first: Mapping[str, Any], states: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Return the counters of the first rank."""
        return dict(first)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the counters."""
        self._recorder.load_state_dict(state["statistics"])

    def _reduce_flat(self) -> None:
        slices = [slice_ for pending in self._pending for slice_ in pending.bucket.slices]
        flat = torch.zeros(self._layout.dense_size, dtype=self._dtype, device=self._layout.device)
        for slice_ in slices:
            slice_.segment.flat_view(flat).copy_(self._to_wire(slice_.gradient))
        self._recorder.issued("ring_all_reduce", flat)
        all_reduce_sum(flat, self._group, phase="the dense exchange")
        for slice_ in slices:
            self._from_wire(slice_.segment.flat_view(flat), slice_.gradient)

    def _to_wire(self, gradient: Tensor) -> Tensor:
        # Half precision divides first: a sum of many workers would overflow float16.
        if self._dtype == torch.float32:
            return gradient if gradient.dtype == self._dtype else gradient.to(self._dtype)
        return (gradient / self._world_size).to(self._dtype)

    def _from_wire(self, wire: Tensor, gradient: Tensor) -> None:
        if wire is not gradient:
            gradient.copy_(wire)
        if self._dtype == torch.float32:
            gradient.div_(self._world_size)
