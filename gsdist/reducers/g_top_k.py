"""Exchange k coordinates by gTop-k: pairs of workers add their k entries and keep the k largest, up a tree.

Source: gTop-k S-SGD (Shi et al., arXiv 1901.04359, algorithm 3), here for any number of workers.

A merge keeps k of up to 2k entries and drops the rest. The original forgets the dropped sums while it
counts every surviving coordinate as sent by all workers, so part of the gradient is lost
(dropped="forget"). By default the worker that merges keeps what it drops in its own residual
(dropped="residual"): nothing is lost.

Collectives per step: one all-reduce of dense set and agreement lanes; ceil(log2 P) rounds of point-to-point
messages of k (index, value) pairs; one broadcast of the result.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gsdist.collectives import broadcast_from, receive_from, send_to
from gsdist.reducers.compressed import CompressedReducer, Update
from gsdist.reducers.config import SparseConfig, check_fields
from gsdist.reducers.sparse_entries import Entries, pack_entries, sum_entries, unpack_entries
from gsdist.sketch.on_device import top_k

__all__ = ["GTopKConfig", "GTopKReducer"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GTopKConfig(SparseConfig):
    """Configure gTop-k."""

    dropped: Literal["residual", "forget"] = "residual"
    """What becomes of sums that a merge drops: kept by the merging worker, or lost."""

    def __post_init__(self) -> None:
        """Check the fields."""
        SparseConfig.__post_init__(self)
        checks = {"dropped": (self.dropped in ("residual", "forget"), '"residual" or "forget"')}
        check_fields(self, checks)


class GTopKReducer(CompressedReducer[GTopKConfig]):
    """Average the k coordinates that survive pairwise merges."""

    def _begin_step(self) -> None:
        self._dropped: list[Entries] = []

    def _exchange(self) -> Update | None:
        reduced = self._reduce_values(self._zeros(0, dtype=torch.int64))
        if reduced is None:
            return None
        size = self._layout.compressed_size
        count = min(self._config.selected_at(self._step, self._layout), size)
        with self._recorder.phase("select"):
            own = top_k(self._corrected, count)
        merged = self._merge_up_the_tree(own, self._corrected[own])
        indices, sums = self._broadcast_result(merged)
        sent = own if self._config.dropped == "residual" else own[torch.isin(own, indices)]
        return Update(sums=sums, indices=indices, sent=sent, dense_sums=reduced[1])

    def _merge_up_the_tree(self, indices: Tensor, values: Tensor) -> Tensor:
        """Return the packed k entries of this worker's subtree; those of rank 0 are the result."""
        size, entries = self._layout.compressed_size, (indices, values)
        packed = pack_entries(entries, size)
        self._recorder.issued("tree_reduce", packed, sends=self._rank != 0)
        distance = 1
        while distance < self._world_size:
            if self._rank % (2 * distance) == distance:
                with self._recorder.phase("tree"):
                    send_to(self._rank - distance, packed, self._group, phase="the gTop-k tree")
                break
            if self._rank + distance < self._world_size:
                received = torch.empty_like(packed)
                with self._recorder.phase("tree"):
                    receive_from(
                        self._rank + distance, received, self._group, phase="the gTop-k tree"
                    )
                with self._recorder.phase("merge"):
                    entries = self._keep_largest(
                        *sum_entries([entries, unpack_entries(received, size)]), indices.numel()
                    )
                    packed = pack_entries(entries, size)
            distance *= 2
        return packed

    def _keep_largest(self, indices: Tensor, sums: Tensor, count: int) -> tuple[Tensor, Tensor]:
        best = top_k(sums, count)
        dropped = torch.ones_like(indices, dtype=torch.bool)
        dropped[best] = False
        self._dropped.append((indices[dropped], sums[dropped]))
        return indices[best], sums[best]

    def _broadcast_result(self, packed: Tensor) -> tuple[Tensor, Tensor]:
        self._recorder.issued("tree_broadcast", packed, sends=self._rank == 0)
        with self._recorder.phase("broadcast"):
            broadcast_from(0, packed, self._group, phase="the gTop-k result")
        return unpack_entries(packed, self._layout.compressed_size)

    def _commit(self, update: Update) -> None:
        super()._commit(update)
        if self._config.dropped == "residual":
            for indices, sums in self._dropped:
                self._residual[indices] += sums
