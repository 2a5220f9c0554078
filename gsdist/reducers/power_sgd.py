"""Exchange low-rank approximations of every parameter's gradient by PowerSGD.

Source: PowerSGD (Vogels et al., arXiv 1905.13727, algorithms 1 and 2), with error feedback and warm start.

======  =============================================================
symbol  here
======  =============================================================
M_i     corrected gradient of one parameter as an (n, m) matrix
P       (n, rank): sum over workers of M_i Q, orthonormalised
Q       (m, rank): sum over workers of M_i^T P; P Q^T is the update
======  =============================================================

Collectives per step: one all-reduce of all P, dense set and agreement lanes, one of all Q and lanes. A
half-precision sum that overflows is repeated in float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gsdist.reducers.compressed import Update
from gsdist.reducers.config import check_fields
from gsdist.reducers.draw_seed import draw_seed
from gsdist.reducers.factors import FactorConfig, FactorReducer
from gsdist.reducers.layout import Segment
from gsdist.reducers.matrix_basis import orthonormal

__all__ = ["PowerSgdConfig", "PowerSgdReducer"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerSgdConfig(FactorConfig):
    """Configure PowerSGD."""

    rank: int = 2
    """Rank of the approximation; capped per parameter at its smaller side."""
    warm_start: bool = True
    """Start each step from the Q of the step before, else from fresh random numbers."""
    seed: int = 0
    """Seed of the random Q, equal on all ranks."""

    def __post_init__(self) -> None:
        """Check the fields."""
        FactorConfig.__post_init__(self)
        checks = {
            "rank": (self.rank >= 1, "at least 1"),
            "seed": (0 <= self.seed < 2**32, "in 0..2**32-1"),
        }
        check_fields(self, checks)


class PowerSgdReducer(FactorReducer[PowerSgdConfig]):
    """Average low-rank approximations of the corrected gradients."""

    def _allocate(self) -> None:
        super()._allocate()
        segments = self._layout.compressed
        self._right = {segment.name: self._random_right(segment) for segment in segments}

    def _random_right(self, segment: Segment) -> Tensor:
        seed = draw_seed(self._config.seed, self._step, segment.offset)
        generator = torch.Generator().manual_seed(seed)
        rows, columns = segment.matrix_shape
        rank = min(self._config.rank, rows, columns)
        return torch.randn(columns, rank, generator=generator).to(self._device)

    def _exchange(self) -> Update | None:
        segments = self._layout.compressed
        with self._recorder.phase("encode"):
            if not self._config.warm_start:
                self._right = {s.name: self._random_right(s) for s in segments}
            matrices = [segment.matrix_view(self._corrected) for segment in segments]
            left = [m @ self._right[s.name] for m, s in zip(matrices, segments, strict=True)]
        reduced = self._sum("left", [*left, self._dense], None)
        if reduced is None:
            return None
        left, dense_sums = reduced[0][:-1], reduced[0][-1]
        with self._recorder.phase("select"):
            left = [orthonormal(factor) for factor in left]
        with self._recorder.phase("encode"):
            right = [m.mT @ p for m, p in zip(matrices, left, strict=True)]
        reduced = self._sum("right", right, None)
        if reduced is None:
            return None
        right = reduced[0]
        with self._recorder.phase("decode"):
            approximation = torch.zeros_like(self._corrected)
            for segment, p, q in zip(segments, left, right, strict=True):
                segment.matrix_view(approximation).copy_(p @ q.mT)
                self._right[segment.name] = q
        return Update(sums=approximation, indices=None, sent=None, dense_sums=dense_sums)

    def _numbers_of(self, update: Update) -> dict[str, int]:
        numbers = super()._numbers_of(update)
        if not self._warming_up:
            for segment in self._layout.compressed:
                rank = self._right[segment.name].shape[1]
                numbers[segment.name] = rank * sum(segment.matrix_shape)
        return numbers

    def _remove_sent(self, update: Update) -> None:
        if self._warming_up:
            super()._remove_sent(update)
        else:
            self._residual.sub_(update.sums, alpha=1.0 / self._world_size)

    def state_dict(self) -> dict[str, Any]:
        """Add the factors that the next step starts from."""
        return {**super().state_dict(), "right": {n: q.clone() for n, q in self._right.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned on this rank."""
        super().load_state_dict(state)
        if "right" in state:
            self._right = {name: state["right"][name].clone() for name in self._right}
