"""Implement sketch format 1 readably: oracle of the tests, fallback where the extension is missing.

`docs/sketch-format.md` states the same in words. Values are added one by one in ascending order of
the coordinates, so the native backend must give the same bits. All hash arithmetic is modulo 2^64;
every integer in it is np.uint64, because numba turns a mix of signed and unsigned into floating
point.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from gsdist.sketch.format import BLOCK, MAX_ROWS, SketchFormat

__all__ = [
    "NAME",
    "block_words",
    "build_info",
    "compensate",
    "encode_dense",
    "encode_sparse",
    "estimate",
    "heavy_hitters",
    "top_k",
]

Array = NDArray[Any]
Function = TypeVar("Function", bound=Callable[..., Any])

NAME = "numba"

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_SPREAD = np.uint64(0xD6E8FEB86659FD93)
_BLOCK = np.uint64(BLOCK)
_LANES = np.uint64(BLOCK - 1)
_1, _6, _26, _27, _30, _31, _32 = (np.uint64(n) for n in (1, 6, 26, 27, 30, 31, 32))

# Coordinates estimated at a time by heavy_hitters, so that memory does not grow with the dimension.
_CHUNK = 1 << 18


def _compiled(function: Function) -> Function:
    return cast(Function, numba.njit(nogil=True)(function))


@_compiled
def _mix64(word: np.uint64) -> np.uint64:
    word = (word ^ (word >> _30)) * _MIX_1
    word = (word ^ (word >> _27)) * _MIX_2
    return word ^ (word >> _31)


@_compiled
def block_words(
    seed: np.uint64, row: np.uint64, block: np.uint64, columns: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64]:
    """Return a block's sign bits, the first cell of its bucket block and its lane permutation."""
    row_key = _mix64(seed + _GOLDEN * (row + _1))
    signs = _mix64(row_key + _GOLDEN * block)
    position = (signs ^ (signs >> _32)) * _SPREAD
    bucket_block = ((position >> _32) * (columns // _BLOCK)) >> _32
    return signs, bucket_block * _BLOCK, (position >> _26) & _LANES


@_compiled
def _signed(value: np.float32, signs: np.uint64, lane: np.uint64) -> np.float32:
    return -value if (signs >> lane) & _1 else value


@_compiled
def _encode_dense(table: Array, seed: np.uint64, values: Array, offset: int) -> None:
    rows, columns = table.shape
    for row in range(rows):
        index = 0
        while index < values.size:
            block = np.uint64(offset + index) >> _6
            signs, first, swap = block_words(seed, np.uint64(row), block, np.uint64(columns))
            lane = np.uint64(offset + index) & _LANES
            while lane < _BLOCK and index < values.size:
                table[row, first + (lane ^ swap)] += _signed(values[index], signs, lane)
                lane += _1
                index += 1


@_compiled
def _encode_sparse(table: Array, seed: np.uint64, indices: Array, values: Array) -> None:
    rows, columns = table.shape
    for row in range(rows):
        for index, value in zip(indices, values):  # noqa: B905 (numba knows no strict=)
            block, lane = np.uint64(index) >> _6, np.uint64(index) & _LANES
            signs, first, swap = block_words(seed, np.uint64(row), block, np.uint64(columns))
            table[row, first + (lane ^ swap)] += _signed(value, signs, lane)


@_compiled
def _estimate(table: Array, seed: np.uint64, indices: Array, out: Array) -> None:
    rows, columns = table.shape
    ordered = np.empty(MAX_ROWS, dtype=np.float32)
    for position, index in enumerate(indices):
        block, lane = np.uint64(index) >> _6, np.uint64(index) & _LANES
        for row in range(rows):
            signs, first, swap = block_words(seed, np.uint64(row), block, np.uint64(columns))
            value = _signed(table[row, first + (lane ^ swap)], signs, lane)
            slot = row
            while slot > 0 and ordered[slot - 1] > value:
                ordered[slot] = ordered[slot - 1]
                slot -= 1
            ordered[slot] = value
        out[position] = ordered[rows // 2]


@_compiled
def _compensate(
    out: Array,
    residual: Array,
    momentum: Array,
    gradient: Array,
    scale: np.float32,
    momentum_factor: np.float32,
    nesterov: bool,
) -> bool:
    """Treat an empty residual as zeros and an empty momentum as none."""
    finite = True
    for i in range(out.size):
        update = scaled = scale * gradient[i]
        if momentum.size:
            update = momentum_factor * momentum[i] + scaled
            if nesterov:
                update = scaled + momentum_factor * update
        out[i] = residual[i] + update if residual.size else update
        finite &= np.isfinite(out[i])
    return finite


def build_info() -> dict[str, Any]:
    """Return the format this module implements."""
    return {"format_version": SketchFormat.version}


def encode_dense(table: Array, seed: int, values: Array, offset: int, threads: int) -> None:
    """Add `values` at coordinates offset, offset + 1, ... to the table; in one thread."""
    _encode_dense(table, np.uint64(seed), values, offset)


def encode_sparse(table: Array, seed: int, indices: Array, values: Array, threads: int) -> None:
    """Add `values` at coordinates `indices`, in that order, to the table; in one thread."""
    _encode_sparse(table, np.uint64(seed), indices, values)


def estimate(table: Array, seed: int, indices: Array, out: Array, threads: int) -> None:
    """Write the median over the rows of sign * cell; in one thread."""
    _estimate(table, np.uint64(seed), indices, out)


def heavy_hitters(table: Array, seed: int, dimension: int, k: int, threads: int) -> Array:
    """Return the k indices of largest |estimate|, ties to the lowest, ascending.

    Goes through the coordinates in chunks and keeps the k best so far. Those kept come first in the
    next comparison and have lower indices, so that ties still go to the lowest index.
    """
    kept = np.empty(0, dtype=np.int64)
    kept_estimates = np.empty(0, dtype=np.float32)
    step = max(_CHUNK, 2 * k)
    for start in range(0, dimension, step):
        fresh = np.arange(start, min(start + step, dimension), dtype=np.int64)
        fresh_estimates = np.empty(fresh.size, dtype=np.float32)
        estimate(table, seed, fresh, fresh_estimates, threads)
        candidates = np.concatenate([kept, fresh])
        estimates = np.concatenate([kept_estimates, fresh_estimates])
        best = top_k(estimates, min(k, candidates.size), threads)
        kept, kept_estimates = candidates[best], estimates[best]
    return kept


def top_k(values: Array, k: int, threads: int) -> Array:
    """Return the k indices of largest |value|, ties to the lowest, ascending."""
    # The bits of |x| order like the numbers they encode, and NaN has a place in that order.
    magnitudes = values.view(np.uint32) & np.uint32(0x7FFFFFFF)
    threshold = np.partition(magnitudes, values.size - k)[values.size - k]
    chosen = magnitudes > threshold
    missing = k - int(np.count_nonzero(chosen))
    chosen[np.flatnonzero(magnitudes == threshold)[:missing]] = True
    return np.flatnonzero(chosen).astype(np.int64, copy=False)


def compensate(
    out: Array,
    residual: Array | None,
    momentum: Array | None,
    gradient: Array,
    scale: float,
    momentum_factor: float,
    nesterov: bool,
    threads: int,
) -> bool:
    """Write residual + update; return whether all of it is finite."""
    empty = np.empty(0, dtype=np.float32)
    return bool(
        _compensate(
            out,
            empty if residual is None else residual,
            empty if momentum is None else momentum,
            gradient,
            np.float32(scale),
            np.float32(momentum_factor),
            nesterov,
        )
    )
