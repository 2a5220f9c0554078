"""Carry what methods share that sum factors of matrices: one buffer per round, half precision if asked for.

Collectives: per sum one all-reduce of all parts, flag and agreement lanes; a half-precision sum that
overflows is repeated in float32.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from gsdist.errors import ConfigError
from gsdist.reducers.compressed import CompressedReducer, Update
from gsdist.reducers.config import CompressedConfig, check_fields
from gsdist.reducers.wire import SumWire, largest

__all__ = ["FactorConfig", "FactorReducer", "split_like"]

_MOST_HALF_LANES = 2048
"""World size up to which float16 counts the agreement lanes exactly."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FactorConfig(CompressedConfig):
    """Configure the precision in which factors travel."""

    wire_dtype: Literal["float32", "float16"] = "float32"
    """Precision of all sums on the wire; what is rounded away stays in the residuals."""

    def __post_init__(self) -> None:
        """Check the fields."""
        # Not super(): dataclasses with slots are made twice, and super() would see the first.
        CompressedConfig.__post_init__(self)
        known = self.wire_dtype in ("float32", "float16")
        check_fields(self, {"wire_dtype": (known, '"float32" or "float16"')})


FactorConfigT = TypeVar("FactorConfigT", bound=FactorConfig)


class FactorReducer(CompressedReducer[FactorConfigT]):
    """Sum lists of tensors, each list with a scale of its own on the wire."""

    def _allocate(self) -> None:
        wire_dtype = self._config.wire_dtype
        if wire_dtype == "float16" and self._world_size > _MOST_HALF_LANES:
            raise ConfigError(
                f'wire_dtype is "float16" with {self._world_size} workers; beyond {_MOST_HALF_LANES} set '
                'wire_dtype="float32"'
            )
        self._wires: dict[str, SumWire] = {}
        self._whole_sent: Tensor | None = None

    def _exchange_whole(self) -> Update | None:
        """Exchange everything in the precision of the wire; what this worker rounds away stays behind."""
        if self._config.wire_dtype == "float32":
            return super()._exchange_whole()
        reduced = self._sum("whole", [self._corrected, self._dense], None)
        if reduced is None:
            return None
        (sums, dense_sums), (self._whole_sent, _) = reduced
        return Update(sums=sums, indices=None, sent=None, dense_sums=dense_sums)

    def _remove_sent(self, update: Update) -> None:
        """Take out what a whole exchange has sent."""
        if self._whole_sent is None:
            super()._remove_sent(update)
        else:
            self._residual.sub_(self._whole_sent)
            self._whole_sent = None

    def _sum(
        self, subject: str, parts: Sequence[Tensor], agreed: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor]] | None:
        """Sum tensors over all ranks; None when all ranks give the step up.

        `subject` names what is summed, always with the same scale; `agreed` (int64) must be equal on all
        ranks. Returns the sums and, as the wire carried them, this rank's own, all float32.
        """
        wire = self._wires.setdefault(subject, SumWire(self._config.wire_dtype))
        shapes = [part.shape for part in parts]
        values = torch.cat([part.flatten() for part in parts])
        own, sums = torch.empty_like(values), torch.empty_like(values)
        lanes = self._flag_and_lanes(agreed)
        for exact in (False, True):
            buffer = wire.pack(values, lanes, exact=exact)
            wire.unpack(buffer, own)
            self._all_reduce(buffer, f"allreduce_{subject}")
            wire.unpack(buffer, sums)
            summed_lanes, peak = buffer[values.numel() :], largest(sums)
            finite = math.isfinite(peak)
            if finite or buffer.dtype == torch.float32 or summed_lanes[0] != 0:
                break
            self._recorder.repeated()
        if not self._accepts(summed_lanes, finite=finite):
            return None
        wire.peak = peak
        return split_like(sums, shapes), split_like(own, shapes)

    def state_dict(self) -> dict[str, Any]:
        """Add what sets the scales on the wire."""
        peaks = {subject: wire.peak for subject, wire in self._wires.items()}
        return {**super().state_dict(), "peaks": peaks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned on this rank."""
        super().load_state_dict(state)
        self._wires = {}
        for subject, peak in state.get("peaks", {}).items():
            self._wires[subject] = SumWire(self._config.wire_dtype)
            self._wires[subject].peak = float(peak)


def split_like(flat: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """View the beginning of a vector as tensors of these shapes, one after the other."""
    ends = list(accumulate((shape.numel() for shape in shapes), initial=0))
    return [
        flat[start:end].view(shape)
        for start, end, shape in zip(ends[:-1], ends[1:], shapes, strict=True)
    ]
