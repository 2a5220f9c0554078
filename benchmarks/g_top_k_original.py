"""Exchange gradients by gTop-k as its authors' code does it; only here to be measured.

Source: gTop-k S-SGD (Shi et al., arXiv 1901.04359) and what its published implementation does, rewritten:
indices and values travel together as float64, 16 bytes an entry; a barrier of all workers ends every
round of the tree; pairs are merged on the host by NumPy; what a merge drops is forgotten. In the authors'
favour, a merge here sorts nothing (theirs sorts all 2k entries), and the first selection is gsdist's.
The result is that of `gsdist.reducers.GTopKConfig(dropped="forget")`.

Collectives per step: one all-reduce of dense set and agreement lanes; log2 P rounds of point-to-point
messages of k pairs, each closed by a barrier; one broadcast of the result.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from gsdist.collectives import broadcast_from, receive_from, send_to
from gsdist.errors import ConfigError
from gsdist.reducers.compressed import CompressedReducer, Update
from gsdist.reducers.config import SparseConfig
from gsdist.sketch.select import top_k

__all__ = ["OriginalGTopKConfig", "OriginalGTopKReducer"]

_PHASE = "the original gTop-k"
Entries = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Ascending indices and their values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OriginalGTopKConfig(SparseConfig):
    """Configure the original gTop-k."""


class OriginalGTopKReducer(CompressedReducer[OriginalGTopKConfig]):
    """Average the k coordinates that survive pairwise merges, at the original's cost."""

    def _allocate(self) -> None:
        """Check what the original asks for.

        Raises:
            ConfigError: the number of workers is no power of two.
        """
        if self._world_size & (self._world_size - 1):
            raise ConfigError(
                f"the original gTop-k needs a power of two of workers, not {self._world_size}"
            )

    def _exchange(self) -> Update | None:
        reduced = self._reduce_values(torch.empty(0, dtype=torch.int64))
        if reduced is None:
            return None
        size = self._layout.compressed_size
        count = min(self._config.selected_at(self._step, self._layout), size)
        with self._recorder.phase("select"):
            own = top_k(self._corrected, count)
        packed = self._merge_up_the_tree((own.numpy(), self._corrected[own].numpy()))
        self._recorder.issued("tree_broadcast", packed, sends=self._rank == 0)
        with self._recorder.phase("broadcast"):
            broadcast_from(0, packed, self._group, phase=_PHASE)
        indices, sums = (torch.from_numpy(part) for part in _unpack(packed))
        sent = own[torch.isin(own, indices)]
        return Update(sums=sums, indices=indices, sent=sent, dense_sums=reduced[1])

    def _merge_up_the_tree(self, entries: Entries) -> Tensor:
        packed = _pack(entries)
        self._recorder.issued("tree_reduce", packed, sends=self._rank != 0)
        distance = 1
        while distance < self._world_size:
            if self._rank % (2 * distance) == distance:
                with self._recorder.phase("tree"):
                    send_to(self._rank - distance, packed, self._group, phase=_PHASE)
            elif self._rank % (2 * distance) == 0:
                received = torch.empty_like(packed)
                with self._recorder.phase("tree"):
                    receive_from(self._rank + distance, received, self._group, phase=_PHASE)
                with self._recorder.phase("merge"):
                    entries = _keep_largest(*_add(entries, _unpack(received)), len(entries[0]))
                    packed = _pack(entries)
            self._barrier()
            distance *= 2
        return packed

    def _barrier(self) -> None:
        # log2 P empty messages follow one another, as in a broadcast of nothing
        self._recorder.issued("tree_broadcast", torch.empty(0))
        with self._recorder.phase("barrier"):
            dist.barrier(group=self._group)


def _pack(entries: Entries) -> Tensor:
    # concatenating int64 and float32 makes float64 of both
    return torch.from_numpy(np.concatenate(entries))


def _unpack(packed: Tensor) -> Entries:
    indices, values = np.split(packed.numpy(), 2)
    return indices.astype(np.int64), values.astype(np.float32)


def _add(first: Entries, second: Entries) -> Entries:
    """Add two sparse vectors with ascending indices; the result's are ascending, too."""
    indices, values = first[0], first[1].copy()
    positions = np.searchsorted(indices, second[0])
    matches = indices[np.minimum(positions, len(indices) - 1)] == second[0]
    values[positions[matches]] += second[1][matches]
    new = positions[~matches]
    return (
        np.insert(indices, new, second[0][~matches]),
        np.insert(values, new, second[1][~matches]),
    )


def _keep_largest(indices: NDArray[np.int64], values: NDArray[np.float32], count: int) -> Entries:
    kept = np.zeros(len(indices), bool)
    kept[np.argpartition(np.abs(values), len(values) - count)[len(values) - count :]] = True
    return indices[kept], values[kept]
