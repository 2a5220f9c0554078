"""Carry (index, value) entries of sparse vectors: 8 bytes each up to 2**31 coordinates, else 12."""

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["Entries", "index_dtype", "pack_entries", "sum_entries", "unpack_entries"]

Entries = tuple[Tensor, Tensor]
"""Indices, int64, and values, float32, both of shape (entries,)."""


def index_dtype(size: int) -> torch.dtype:
    """Return the smallest index type for a vector of `size` coordinates."""
    return torch.int32 if size <= 2**31 else torch.int64


def pack_entries(entries: Entries, size: int) -> Tensor:
    """Return indices and the bits of the values in one int32 buffer, values last."""
    indices, values = entries
    raw_indices = indices.to(index_dtype(size)).view(torch.int32)
    return torch.cat([raw_indices, values.view(torch.int32)])


def unpack_entries(buffer: Tensor, size: int) -> Entries:
    """Return the entries that `pack_entries` packed for a vector of the same size."""
    words = 2 if index_dtype(size) == torch.int32 else 3
    count = buffer.numel() // words
    indices = buffer[:-count].view(index_dtype(size)).to(torch.int64)
    return indices, buffer[-count:].view(torch.float32)


def sum_entries(parts: Iterable[Entries]) -> Entries:
    """Add sparse vectors up, in the order given; indices come out ascending and unique."""
    parts = list(parts)
    indices, positions = torch.unique(
        torch.cat([indices for indices, _ in parts]), return_inverse=True
    )
    sums = torch.zeros(indices.numel(), device=indices.device)
    start = 0
    for (
        part_indices,
        values,
    ) in parts:  # one by one: within a part indices are unique, so order is fixed
        sums[positions[start : start + part_indices.numel()]] += values
        start += part_indices.numel()
    return indices, sums
