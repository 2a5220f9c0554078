"""Exchange each worker's own largest coordinates.

exchange="all_gather": every worker sends its k largest entries to all others, who apply the union of up to
P*k coordinates (Top-k SGD with error feedback; Aji and Heafield, arXiv 1704.05021).

exchange="proposals": every worker names its m*k/P largest coordinates; all workers then sum the exact values
at the union of these proposals and apply the k largest sums. What travels does not grow with P.

Collectives per step: "all_gather": one all-reduce of dense set and agreement lanes, one all-gather of
k (index, value) pairs. "proposals": one all-gather of m*k/P indices, one all-reduce of exact values, dense
set and agreement lanes.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from gsdist.reducers.compressed import CompressedReducer, Update
from gsdist.reducers.config import SparseConfig, check_fields
from gsdist.reducers.sparse_entries import index_dtype, pack_entries, sum_entries, unpack_entries
from gsdist.sketch.on_device import top_k

__all__ = ["TopKConfig", "TopKReducer"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TopKConfig(SparseConfig):
    """Configure top-k."""

    exchange: Literal["all_gather", "proposals"] = "all_gather"
    """Apply all that workers send, or agree on the largest sums of what they propose."""
    proposal_factor: float = 2.0
    """m: proposals of all workers together per selected coordinate."""

    def __post_init__(self) -> None:
        """Check the fields."""
        SparseConfig.__post_init__(self)
        checks = {
            "exchange": (
                self.exchange in ("all_gather", "proposals"),
                '"all_gather" or "proposals"',
            ),
            "proposal_factor": (self.proposal_factor >= 1, "at least 1"),
        }
        check_fields(self, checks)


class TopKReducer(CompressedReducer[TopKConfig]):
    """Average what workers find largest in their own corrected gradients."""

    def _exchange(self) -> Update | None:
        selected = min(
            self._config.selected_at(self._step, self._layout), self._layout.compressed_size
        )
        if self._config.exchange == "proposals":
            return self._exchange_proposals(selected)
        return self._exchange_entries(selected)

    def _exchange_entries(self, count: int) -> Update | None:
        reduced = self._reduce_values(self._zeros(0, dtype=torch.int64))
        if reduced is None:
            return None
        size = self._layout.compressed_size
        with self._recorder.phase("select"):
            own = top_k(self._corrected, count)
            entries = pack_entries((own, self._corrected[own]), size)
        gathered = self._all_gather(entries, "allgather_entries")
        with self._recorder.phase("merge"):
            indices, sums = sum_entries(unpack_entries(row, size) for row in gathered)
        return Update(sums=sums, indices=indices, sent=own, dense_sums=reduced[1])

    def _exchange_proposals(self, selected: int) -> Update | None:
        size = self._layout.compressed_size
        count = min(math.ceil(self._config.proposal_factor * selected / self._world_size), size)
        with self._recorder.phase("select"):
            own = self._own_top_k(count)
        gathered = self._all_gather(own.to(index_dtype(size)), "allgather_proposals")
        with self._recorder.phase("merge"):
            candidates = torch.unique(gathered.to(torch.int64))
        reduced = self._reduce_values(candidates)
        if reduced is None:
            return None
        sums, dense_sums = reduced
        with self._recorder.phase("select"):
            best = top_k(sums, min(selected, sums.numel()))
            chosen = candidates[best]
        return Update(sums=sums[best], indices=chosen, sent=chosen, dense_sums=dense_sums)
