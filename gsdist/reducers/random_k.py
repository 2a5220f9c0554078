"""Exchange k coordinates that all workers draw alike: the cheapest selection, and the weakest.

One coordinate is drawn from each of k equal stretches of the vector, so every coordinate has the same chance
and no step draws one twice (stratified; Stich et al., arXiv 1809.07599, draw without strata).

Collectives per step: one all-reduce of values, dense set and agreement lanes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gsdist.reducers.compressed import CompressedReducer, Update
from gsdist.reducers.config import SparseConfig, check_fields
from gsdist.reducers.draw_seed import draw_seed

__all__ = ["RandomKConfig", "RandomKReducer"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomKConfig(SparseConfig):
    """Configure random-k."""

    seed: int = 0
    """Seed of the draws, equal on all ranks."""

    def __post_init__(self) -> None:
        """Check the fields."""
        SparseConfig.__post_init__(self)
        check_fields(self, {"seed": (0 <= self.seed < 2**32, "in 0..2**32-1")})


class RandomKReducer(CompressedReducer[RandomKConfig]):
    """Average coordinates drawn from a shared seed."""

    def _exchange(self) -> Update | None:
        with self._recorder.phase("select"):
            drawn = self._draw()
        reduced = self._reduce_values(drawn)
        if reduced is None:
            return None
        sums, dense_sums = reduced
        return Update(sums=sums, indices=drawn, sent=drawn, dense_sums=dense_sums)

    def _draw(self) -> Tensor:
        """Draw this step's coordinates, ascending; a function of seed and step alone."""
        layout = self._layout
        count = self._config.selected_at(self._step, layout)
        generator = torch.Generator().manual_seed(draw_seed(self._config.seed, self._step))
        ends = torch.arange(count + 1, dtype=torch.int64) * layout.compressed_numel // count
        lengths = ends[1:] - ends[:-1]
        draws = torch.rand(count, generator=generator, dtype=torch.float64)
        ordinals = ends[:-1] + (draws * lengths).long()
        return layout.coordinates(ordinals.to(self._device))
