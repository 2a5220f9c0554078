"""Hand arrays to the C++ extension as addresses and sizes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

import gsdist._native as _native
from gsdist.sketch.format import SketchFormat

__all__ = [
    "NAME",
    "build_info",
    "compensate",
    "encode_dense",
    "encode_sparse",
    "estimate",
    "heavy_hitters",
    "top_k",
]

Array = NDArray[Any]

NAME = "native"

build_info = _native.build_info

_built_for = build_info()["format_version"]
if _built_for != SketchFormat.version:
    raise ImportError(
        f"it was built for sketch format {_built_for}, this gsdist uses {SketchFormat.version}"
    )


def encode_dense(table: Array, seed: int, values: Array, offset: int, threads: int) -> None:
    """Add `values` at coordinates offset, offset + 1, ... to the table."""
    rows, columns = table.shape
    _native.encode_dense(
        table.ctypes.data, rows, columns, seed, values.ctypes.data, offset, values.size, threads
    )


def encode_sparse(table: Array, seed: int, indices: Array, values: Array, threads: int) -> None:
    """Add `values` at coordinates `indices`, in that order, to the table."""
    rows, columns = table.shape
    _native.encode_sparse(
        table.ctypes.data,
        rows,
        columns,
        seed,
        indices.ctypes.data,
        values.ctypes.data,
        values.size,
        threads,
    )


def estimate(table: Array, seed: int, indices: Array, out: Array, threads: int) -> None:
    """Write the median over the rows of sign * cell."""
    rows, columns = table.shape
    _native.estimate(
        table.ctypes.data,
        rows,
        columns,
        seed,
        indices.ctypes.data,
        out.ctypes.data,
        indices.size,
        threads,
    )


def heavy_hitters(table: Array, seed: int, dimension: int, k: int, threads: int) -> Array:
    """Return the k indices of largest |estimate|, ties to the lowest, ascending."""
    rows, columns = table.shape
    indices = np.empty(k, dtype=np.int64)
    _native.heavy_hitters(
        table.ctypes.data, rows, columns, seed, dimension, k, indices.ctypes.data, threads
    )
    return indices


def top_k(values: Array, k: int, threads: int) -> Array:
    """Return the k indices of largest |value|, ties to the lowest, ascending."""
    indices = np.empty(k, dtype=np.int64)
    _native.top_k(values.ctypes.data, values.size, k, indices.ctypes.data, threads)
    return indices


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
    return bool(
        _native.compensate(
            out.ctypes.data,
            0 if residual is None else residual.ctypes.data,
            0 if momentum is None else momentum.ctypes.data,
            gradient.ctypes.data,
            scale,
            momentum_factor,
            nesterov,
            out.size,
            threads,
        )
    )
