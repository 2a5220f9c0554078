"""Offer sketches on a GPU, and what reducers need around them; torch tensors and CuPy arrays.

Nothing here waits for the GPU. What only the GPU could find out is therefore not checked: indices
must lie within the dimension, and tables and values must be finite.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gsdist.errors import ConfigError
from gsdist.sketch.cuda_arrays import (
    device_view,
    like_on_device,
    on_stream_of,
    same_device,
    same_length,
)
from gsdist.sketch.cuda_kernels import NUMBER_TYPES, BlockOrder
from gsdist.sketch.cuda_launch import cuda_kernels
from gsdist.sketch.format import SketchFormat, integer
from gsdist.sketch.select import checked_k

__all__ = ["CudaSketch", "cast", "compensate", "scatter", "top_k"]

_NARROW = (torch.float16, torch.bfloat16)


class CudaSketch:
    """Summarise a vector as `CountSketch` does, in a table on a GPU.

    Values may be float32, float16 or bfloat16 and are added in float32. Where torch's deterministic
    algorithms are on (`torch.use_deterministic_algorithms`), every sum is rounded in the order of
    the CPU, so that the tables are equal bit by bit; else the order is left to the GPU. Reading a
    table is deterministic in any case. To be used in one stream.

    Args:
        format: shape and hash functions.
        table: float32 of shape (rows, columns), used in place.

    Raises:
        ConfigError: the table's shape is not that of the format.
        InputTypeError: the table is not a contiguous float32 CUDA tensor or CuPy array that begins
            at a multiple of 16 bytes, or requires a gradient.
    """

    def __init__(self, format: SketchFormat, table: Any) -> None:
        with on_stream_of(table):
            self._cells = device_view(table, "table", torch.float32, dimensions=2, aligned_to=16)
        if self._cells.shape != format.table_shape:
            raise ConfigError(
                f"table has shape {tuple(self._cells.shape)}, "
                f"the format asks for {format.table_shape}"
            )
        self._format = format
        self._table = table
        self._orders: dict[tuple[int, int], BlockOrder] = {}

    @property
    def format(self) -> SketchFormat:
        """Return the format."""
        return self._format

    @property
    def table(self) -> Any:
        """Return the table itself, float32 (rows, columns); writing to it changes the sketch."""
        return self._table

    def zero_(self) -> None:
        """Set all cells to zero."""
        with on_stream_of(self._table):
            self._cells.zero_()

    def encode(self, values: Any, offset: int = 0) -> None:
        """Add `values` at coordinates offset, offset + 1, ... of the vector.

        In deterministic mode the first slice of a place and length sorts its blocks and keeps their
        order, about 0.06 * rows bytes per value.

        Raises:
            ConfigError: the slice does not lie within the dimension.
            InputTypeError: `values` is not a contiguous 1-D array of a supported type.
        """
        with on_stream_of(self._table):
            view = self._view(values, "values", *NUMBER_TYPES)
            count = view.numel()
            if not 0 <= (start := integer("offset", offset)) <= self._format.dimension - count:
                raise ConfigError(
                    f"{count} values at offset={start} do not fit a vector of "
                    f"dimension {self._format.dimension}"
                )
            if torch.are_deterministic_algorithms_enabled():
                order = self._order(start, count)
                cuda_kernels().encode_dense_ordered(
                    self._cells, self._format.seed, view, start, order
                )
            else:
                cuda_kernels().encode_dense(self._cells, self._format.seed, view, start)

    def encode_sparse(self, indices: Any, values: Any) -> None:
        """Add `values` at coordinates `indices`; of a repeated index every value is added.

        Raises:
            ConfigError: the lengths differ.
            InputTypeError: not contiguous 1-D int64 indices and values of a supported type.
        """
        with on_stream_of(self._table):
            where = self._view(indices, "indices", torch.int64)
            view = self._view(values, "values", *NUMBER_TYPES)
            same_length(where, "indices", view, "values")
            kernels = cuda_kernels()
            encode = (
                kernels.encode_sparse_ordered
                if torch.are_deterministic_algorithms_enabled()
                else kernels.encode_sparse
            )
            encode(self._cells, self._format.seed, where, view)

    def estimate(self, indices: Any) -> Any:
        """Return unbiased estimates of the vector at `indices`, float32.

        Raises:
            InputTypeError: not contiguous 1-D int64 indices.
        """
        with on_stream_of(self._table):
            where = self._view(indices, "indices", torch.int64)
            out = torch.empty(where.numel(), device=where.device)
            cuda_kernels().estimate(self._cells, self._format.seed, where, out)
            return like_on_device(out, self._table)

    def heavy_coordinates(self, k: int) -> Any:
        """Return the k coordinates of largest |estimate|, int64, ascending.

        Those that `CountSketch` finds in the same table: ties go to the lowest index, and where
        fewer than k estimates differ from zero the lowest of the remaining indices fill up.

        Raises:
            ConfigError: k is below 1 or above the dimension.
        """
        count = checked_k(k, self._format.dimension, "dimension of the vector")
        with on_stream_of(self._table):
            found = cuda_kernels().heavy_hitters(
                self._cells, self._format.seed, self._format.dimension, count
            )
            return like_on_device(found, self._table)

    def heavy_hitters(self, k: int) -> tuple[Any, Any]:
        """Return the coordinates of `heavy_coordinates` and their estimates.

        Raises:
            ConfigError: k is below 1 or above the dimension.
        """
        indices = self.heavy_coordinates(k)
        return indices, self.estimate(indices)

    def _view(self, array: object, name: str, *dtypes: torch.dtype) -> Tensor:
        view = device_view(array, name, *dtypes)
        same_device(view, name, self._cells, "table")
        return view

    def _order(self, offset: int, count: int) -> BlockOrder:
        slice_ = (offset, count)
        if slice_ not in self._orders:
            self._orders[slice_] = cuda_kernels().ordered_blocks(
                self._cells, self._format.seed, offset, count
            )
        return self._orders[slice_]


def top_k(values: Any, k: int) -> Any:
    """Return the k indices of largest |value|, ascending int64; ties go to the lowest index.

    Raises:
        ConfigError: k is below 1 or above the number of values.
        InputTypeError: `values` is not a contiguous 1-D float32 array on a GPU.
    """
    with on_stream_of(values):
        view = device_view(values, "values", torch.float32)
        count = checked_k(k, view.numel(), "number of values")
        return like_on_device(cuda_kernels().top_k(view, count), values)


def compensate(
    out: Any,
    residual: Any | None,
    gradient: Any,
    *,
    momentum: Any | None = None,
    momentum_factor: float = 0.0,
    nesterov: bool = False,
    scale: float = 1.0,
) -> Any:
    """Write residual + update to `out` as `gsdist.sketch.select.compensate` does, with its bits.

    The gradient may also be float16 or bfloat16, the rest is float32.

    Returns:
        int32 scalar on the GPU: 1 if all of `out` is finite, else 0.

    Raises:
        ConfigError: the lengths differ, or there is a momentum factor or Nesterov without momentum.
        InputTypeError: an array is not a contiguous 1-D array on the GPU of `out`.
    """
    if momentum is None and (momentum_factor != 0.0 or nesterov):
        raise ConfigError(
            f"momentum_factor={momentum_factor}, nesterov={nesterov}, but momentum is None; "
            "pass the momentum buffer"
        )

    def view(array: Any | None, name: str, *dtypes: torch.dtype) -> Tensor | None:
        if array is None:
            return None
        found = device_view(array, name, *dtypes)
        same_length(found, name, target, "out")
        return found

    with on_stream_of(out):
        target = device_view(out, "out", torch.float32)
        added = device_view(gradient, "gradient", *NUMBER_TYPES)
        same_length(added, "gradient", target, "out")
        finite = cuda_kernels().compensate(
            target,
            view(residual, "residual", torch.float32),
            view(momentum, "momentum", torch.float32),
            added,
            scale,
            momentum_factor,
            nesterov,
        )
        return like_on_device(finite, out)


def scatter(out: Any, indices: Any, values: Any, *, scale: float = 1.0) -> None:
    """Write scale * values at `indices` of `out`, rounded to its type; the rest of `out` stays.

    Raises:
        ConfigError: there are not as many indices as values.
        InputTypeError: not int64 indices, float32 values and a supported type of `out`, all
            contiguous, 1-D and on one GPU.
    """
    with on_stream_of(out):
        target = device_view(out, "out", *NUMBER_TYPES)
        where = device_view(indices, "indices", torch.int64)
        view = device_view(values, "values", torch.float32)
        same_length(where, "indices", view, "values")
        same_device(where, "indices", target, "out")
        cuda_kernels().scatter(target, where, view, scale)


def cast(out: Any, values: Any, scale: Any) -> None:
    """Write scale * values to `out`, one of them float32, the other float16 or bfloat16.

    Narrow numbers are rounded to nearest, ties to even; what is too large for float16 becomes
    infinity.

    Raises:
        ConfigError: the lengths differ.
        InputTypeError: another combination of types, not contiguous 1-D arrays on one GPU, or
            `scale` is not a float32 scalar on that GPU.
    """
    with on_stream_of(out):
        source = device_view(values, "values", torch.float32, *_NARROW)
        wanted = _NARROW if source.dtype == torch.float32 else (torch.float32,)
        target = device_view(out, "out", *wanted)
        factor = device_view(scale, "scale", torch.float32, dimensions=0)
        same_length(source, "values", target, "out")
        same_device(factor, "scale", target, "out")
        cuda_kernels().cast(target, source, factor)
