"""Exchange the k largest sums of what workers find largest, in O(k) words per worker for any number of them.

Source: Ok-Topk (Li and Hoefler, arXiv 2201.07598, section 3). Workers divide the coordinates among
themselves into regions that hold about equally many of all workers' k largest entries. Each sums up the
entries of its own region, all find the k largest of these sums together, and collect them after dividing
them evenly. An entry counts as sent when its coordinate is among those k.

The original estimates both thresholds and keeps them for many steps, so that the number of entries drifts.
Here both selections are exact: each worker's k largest by a counting pass, the k largest sums by their
digits, of 8 bits each, from the highest down. There is no state beyond the residual.

======  ============================================================================
symbol  here
======  ============================================================================
k, P    entries that are applied, and number of workers
T       key of the k-th largest sum: the bits of its magnitude, which sort as it does
======  ============================================================================

Collectives per step: one all-reduce of dense set, P - 1 boundaries and agreement lanes; an exchange between
all pairs of entry counts and one of entries (at most 2k words); 4 all-reduces along a tree of 256 counts; an
all-gather of 2 counts; an exchange between all pairs of at most 2k words; an all-gather of k/P entries.
Without the counts less than 6k words leave a worker.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gsdist.collectives import all_to_all, tree_all_reduce_sum
from gsdist.reducers.compressed import CompressedReducer, Update
from gsdist.reducers.config import SparseConfig
from gsdist.reducers.finite import all_finite
from gsdist.reducers.sparse_entries import (
    Entries,
    index_dtype,
    pack_entries,
    sum_entries,
    unpack_entries,
)

__all__ = ["OkTopKConfig", "OkTopKReducer"]

_DIGIT_BITS = 8
_SHIFTS = range(32 - _DIGIT_BITS, -1, -_DIGIT_BITS)
"""Places of a key's digits, from the highest down."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OkTopKConfig(SparseConfig):
    """Configure Ok-Topk."""


class OkTopKReducer(CompressedReducer[OkTopKConfig]):
    """Average the k largest sums of the workers' k largest entries."""

    def _exchange(self) -> Update | None:
        count = self._config.selected_at(self._step, self._layout)
        with self._recorder.phase("select"):
            own = self._own_top_k(count)
        no_indices = self._zeros(0, dtype=torch.int64)
        reduced = self._reduce_with_dense(_quantiles(own, self._world_size), no_indices)
        if reduced is None:
            return None
        boundary_sums, dense_sums = reduced
        # Each rank may have added in an order of its own, so sums of ascending numbers need not ascend.
        boundaries = (boundary_sums / self._world_size).long().sort().values
        largest = self._select_largest(self._sum_region(own, boundaries), count)
        indices, sums = self._collect(*largest, count)
        if not all_finite(sums):
            return None
        sent = own[torch.isin(own, indices)]
        return Update(sums=sums, indices=indices, sent=sent, dense_sums=dense_sums)

    def _sum_region(self, own: Tensor, boundaries: Tensor) -> Entries:
        """Return the sums of all workers' entries in this worker's region."""
        size, ends = self._layout.compressed_size, torch.searchsorted(own, boundaries).tolist()
        indices, values = own.tensor_split(ends), self._corrected[own].tensor_split(ends)
        parts = [pack_entries(entries, size) for entries in zip(indices, values, strict=True)]
        lengths = [torch.tensor([part.numel()], device=self._device) for part in parts]
        announced = self._all_to_all(lengths, [1] * self._world_size, "gather_counts")
        received = self._all_to_all(parts, [int(n) for n in announced], "gather_entries")
        with self._recorder.phase("merge"):
            return sum_entries(unpack_entries(part, size) for part in received)

    def _select_largest(self, entries: Entries, count: int) -> tuple[Entries, list[int]]:
        """Choose among the entries of all regions the `count` largest, ties by the lowest index.

        Returns those of this worker's region, and how many there are in each.
        """
        indices, sums = entries
        keys = sums.abs().view(torch.int32).long()
        threshold, ties_wanted = self._find_threshold(keys, count)
        above, ties = keys > threshold, keys == threshold
        own_counts = torch.stack([above.sum(), ties.sum()])
        counts = self._all_gather(own_counts, "allgather_counts").tolist()
        taken, left = [], ties_wanted
        for _, ties_there in counts:
            taken.append(min(left, ties_there))
            left -= taken[-1]
        chosen = above | (ties & (ties.cumsum(0) <= taken[self._rank]))
        return (indices[chosen], sums[chosen]), [
            above_there + t for (above_there, _), t in zip(counts, taken, strict=True)
        ]

    def _find_threshold(self, keys: Tensor, count: int) -> tuple[int, int]:
        """Return T, the `count`-th largest of all workers' keys, and how many equal to it are wanted."""
        threshold, wanted = 0, count
        for shift in _SHIFTS:
            with self._recorder.phase("select"):
                digits = keys[keys >> (shift + _DIGIT_BITS) == threshold] >> shift
                digits &= 2**_DIGIT_BITS - 1
                histogram = torch.bincount(digits, minlength=2**_DIGIT_BITS).to(torch.int32)
            self._recorder.issued("tree_all_reduce", histogram)
            with self._recorder.phase("tree"):
                tree_all_reduce_sum(histogram, self._group, phase=f"step {self._step}, threshold")
            reaching = histogram.flip(0).cumsum(0)
            rank_from_top = int(torch.searchsorted(reaching, wanted))
            digit = 2**_DIGIT_BITS - 1 - rank_from_top
            wanted -= int(reaching[rank_from_top] - histogram[digit])
            threshold = threshold << _DIGIT_BITS | digit
        return threshold, wanted

    def _collect(self, entries: Entries, counts: list[int], total: int) -> Entries:
        """Return the entries of all regions after every worker has got, and passed on, an equal share."""
        size, rank = self._layout.compressed_size, self._rank
        share = math.ceil(total / self._world_size)
        starts = [sum(counts[:region]) for region in range(self._world_size + 1)]

        def overlap(region: int, owner: int) -> slice:
            first = max(starts[region], owner * share)
            stop = max(first, min(starts[region + 1], (owner + 1) * share))
            return slice(first - starts[region], stop - starts[region])

        everyone = range(self._world_size)
        parts = [
            pack_entries((entries[0][there], entries[1][there]), size)
            for there in (overlap(rank, owner) for owner in everyone)
        ]
        words = 1 + index_dtype(size).itemsize // 4
        there = [overlap(region, rank) for region in everyone]
        received = self._all_to_all(
            parts, [words * (s.stop - s.start) for s in there], "gather_shares"
        )
        indices, sums = _concatenated([unpack_entries(part, size) for part in received])
        padded = self._zeros(share, dtype=torch.int64), self._zeros(share)
        padded[0][: indices.numel()], padded[1][: sums.numel()] = indices, sums
        gathered = self._all_gather(pack_entries(padded, size), "allgather_entries")
        indices, sums = _concatenated([unpack_entries(row, size) for row in gathered])
        return indices[:total], sums[:total]

    def _all_to_all(self, parts: list[Tensor], lengths: list[int], phase: str) -> list[Tensor]:
        others = (part for rank, part in enumerate(parts) if rank != self._rank)
        self._recorder.issued("all_to_all", *others)
        with self._recorder.phase(phase):
            return all_to_all(parts, lengths, self._group, phase=f"step {self._step}, {phase}")


def _quantiles(indices: Tensor, parts: int) -> Tensor:
    """Return where to cut ascending indices into equally many per part; float32 `(parts - 1,)`."""
    return indices[torch.arange(1, parts) * indices.numel() // parts].float()


def _concatenated(parts: list[Entries]) -> Entries:
    return torch.cat([indices for indices, _ in parts]), torch.cat([values for _, values in parts])
