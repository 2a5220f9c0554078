"""State what every exchange method takes and gives: local gradients in, the agreed average out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from gsdist.collectives.cost_model import Transfer
from gsdist.reducers.layout import FlatLayout, Segment

__all__ = ["ExchangeStatistics", "GradientBucket", "GradientSlice", "MomentumCorrection", "Reducer"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientSlice:
    """Tie a stretch of a bucket's buffer to the parameter whose gradient it is."""

    segment: Segment
    gradient: Tensor
    """1-D view of the bucket's buffer, `segment.numel` elements in memory order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientBucket:
    """Hold the gradients of some parameters in one contiguous buffer."""

    buffer: Tensor
    """1-D, any floating-point dtype; the reducer overwrites it with the average."""
    slices: tuple[GradientSlice, ...]

    @classmethod
    def whole(cls, layout: FlatLayout, buffer: Tensor) -> "GradientBucket":
        """View `layout.numel` numbers, one parameter after the other in the layout's order, as one bucket."""
        parts = torch.split(buffer, [segment.numel for segment in layout])
        pairs = zip(layout, parts, strict=True)
        slices = tuple(GradientSlice(segment=segment, gradient=part) for segment, part in pairs)
        return cls(buffer=buffer, slices=slices)


@dataclass(frozen=True, kw_only=True, slots=True)
class MomentumCorrection:
    """Describe the momentum a reducer applies before compression (DGC, arXiv 1712.01887, section 3.1)."""

    factor: float
    nesterov: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ExchangeStatistics:
    """Count what a reducer has sent and how long it took, on this rank, since it was built."""

    steps: int
    """Exchanges that ended with an update (skipped ones are not counted)."""
    skipped_steps: int
    """Exchanges given up by all ranks because some gradient was not finite."""
    payload_bytes: int
    """Bytes handed to collectives, of the whole run."""
    payload_bytes_last_step: int
    dense_bytes: int
    """Bytes a dense fp32 exchange would have handed to collectives for the same exchanges."""
    transfers_last_step: tuple[Transfer, ...] = ()
    """Collectives of the last exchange, for the cost model."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds per phase, summed over the run."""
    payload_bytes_of: Mapping[str, float] = field(default_factory=dict)
    """Bytes by parameter: those of each step, divided in proportion to the numbers of each parameter that
    were summed in it."""
    repeated_sums: int = 0
    """Half-precision sums that were not finite and were made again in float32."""
    residual_norm: float
    """Euclidean norm of this rank's residual; 0 for methods without one."""

    @property
    def compression(self) -> float:
        """Return dense bytes over payload bytes of the whole run."""
        return self.dense_bytes / self.payload_bytes if self.payload_bytes else 1.0

    def __str__(self) -> str:
        """Return what matters most, in a line."""
        steps = max(1, self.steps + self.skipped_steps)
        phases = sorted(self.seconds.items(), key=lambda item: -item[1])
        milliseconds = ", ".join(f"{name} {1e3 * value / steps:.3g}" for name, value in phases)
        skipped = f" and {self.skipped_steps} skipped" if self.skipped_steps else ""
        return (
            f"{self.steps} steps{skipped}, {self.payload_bytes / 1e6:.3g} MB sent of "
            f"{self.dense_bytes / 1e6:.3g} MB dense ({self.compression:.1f}x), residual norm "
            f"{self.residual_norm:.3g}; ms per step: {milliseconds or '-'}"
        )


class Reducer(Protocol):
    """Turn every worker's local gradient into one agreed averaged gradient.

    One step is any number of `push` calls, in any order of buckets, that together cover every parameter
    once, and one `finish`. Methods are called from one thread at a time.
    """

    def push(self, bucket: GradientBucket, *, scale: float = 1.0) -> None:
        """Take one bucket of this worker's gradient as soon as it is ready.

        `scale` is the factor by which a loss scaler enlarged the gradient; the same for all buckets of a
        step. The bucket's buffer belongs to the reducer until `finish` returns.
        """

    def finish(self) -> None:
        """Complete the exchange; every pushed buffer then holds the (scaled) average over all workers.

        Collectives: as the method's module says. Errors are raised alike on every rank.
        """

    @property
    def last_step_skipped(self) -> bool:
        """Tell whether all ranks gave the last step up because a gradient was not finite."""

    def statistics(self) -> ExchangeStatistics:
        """Return the counters of this rank."""

    def set_mask(self, mask: Mapping[str, Tensor] | None) -> None:
        """Train only coordinates whose mask is True; parameters not named are trained whole.

        Masks are boolean tensors in the parameters' shapes and must be equal on all ranks.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's state, tensors keyed by parameter name."""

    def state_for_new_layout(self) -> dict[str, Any]:
        """Return what of the state still holds when coordinates are cut out of the parameters."""

    def inherited_state(
        self, first: Mapping[str, Any], states: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Return the state of a rank that takes over what other ranks have kept back; load it next.

        `first` is the state of rank 0 of a run with another number of ranks, for what is alike on all of
        them; `states` are those of the ranks this one takes over from, possibly none. If every old rank is
        given to one new rank, the sum of all residuals stays what it was.
        """

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, or `state_for_new_layout`, cut to the parameters."""
