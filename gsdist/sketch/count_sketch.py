"""Hold one Count-Sketch: encode, merge, estimate, find heavy hitters, serialise."""

from __future__ import annotations

import math
from typing import Any, Generic, overload

import numpy as np
from numpy.typing import NDArray

from gsdist.errors import ConfigError, InputTypeError, WireFormatError
from gsdist.sketch import serialisation
from gsdist.sketch.arrays import AnyArray, ArrayT, float_view, index_view, like, writable_float_view
from gsdist.sketch.backend import get_num_threads, kernels
from gsdist.sketch.format import SketchFormat, integer
from gsdist.sketch.select import checked_k

__all__ = ["CountSketch"]


class CountSketch(Generic[ArrayT]):
    """Summarise a vector of `format.dimension` values in a table of rows x columns cells.

    Tables of one format add up: the sum of two tables is the sketch of the sum. Count-Sketch is due
    to Charikar, Chen and Farach-Colton (2002); this one hashes blocks of 64 coordinates, see
    `docs/sketch-format.md`. Arrays go in as contiguous NumPy arrays or torch CPU tensors, float32
    values and int64 indices; results come out in the kind of the table. Values should be finite:
    one that is not spoils the cells it falls in. Not safe for concurrent writes.

    Args:
        format: shape and hash functions.
        table: float32 of shape (rows, columns), used in place; default a new NumPy array of zeros.

    Raises:
        ConfigError: the table's shape is not that of the format.
        InputTypeError: the table is not a contiguous, writable float32 array or CPU tensor, or
            requires a gradient.
    """

    @overload
    def __init__(
        self: CountSketch[NDArray[Any]], format: SketchFormat, table: None = None
    ) -> None: ...
    @overload
    def __init__(self, format: SketchFormat, table: ArrayT) -> None: ...
    def __init__(self, format: SketchFormat, table: Any = None) -> None:
        if table is None:
            table = np.zeros(format.table_shape, dtype=np.float32)
        self._cells = writable_float_view(table, "table", dimensions=2)
        if self._cells.shape != format.table_shape:
            raise ConfigError(
                f"table has shape {self._cells.shape}, the format asks for {format.table_shape}"
            )
        self._format = format
        self._table = table

    def __reduce__(self) -> tuple[type[Any], tuple[SketchFormat, ArrayT]]:
        # By default a copied torch table would no longer share memory with the view of it.
        return CountSketch, (self._format, self.table)

    @property
    def format(self) -> SketchFormat:
        """Return the format."""
        return self._format

    @property
    def table(self) -> ArrayT:
        """Return the table itself, float32 (rows, columns); writing to it changes the sketch."""
        return self._table  # type: ignore[no-any-return]

    def encode(self, values: AnyArray, offset: int = 0) -> None:
        """Add `values` at coordinates offset, offset + 1, ... of the vector.

        Raises:
            ConfigError: the slice does not lie within the dimension.
            InputTypeError: `values` is not a contiguous 1-D float32 array or CPU tensor.
        """
        view = float_view(values, "values")
        if not 0 <= (start := integer("offset", offset)) <= self._format.dimension - view.size:
            raise ConfigError(
                f"{view.size} values at offset={start} do not fit a vector of "
                f"dimension {self._format.dimension}"
            )
        kernels.encode_dense(self._cells, self._format.seed, view, start, get_num_threads())

    def encode_sparse(self, indices: AnyArray, values: AnyArray) -> None:
        """Add `values` at coordinates `indices`; of a repeated index every value is added.

        Raises:
            ConfigError: an index is out of range, or the lengths differ.
            InputTypeError: not contiguous 1-D int64 indices and float32 values.
        """
        where, view = self._checked_indices(indices), float_view(values, "values")
        if where.size != view.size:
            raise ConfigError(f"{where.size} indices for {view.size} values; pass one for each")
        kernels.encode_sparse(self._cells, self._format.seed, where, view, get_num_threads())

    def merge(self, other: CountSketch[Any]) -> None:
        """Add another sketch of the same format to this one, cell by cell.

        Raises:
            InputTypeError: `other` is not a CountSketch.
            WireFormatError: another version, shape, seed or dimension, or the same memory.
        """
        if not isinstance(other, CountSketch):
            raise InputTypeError(f"other: expected a CountSketch, got {type(other).__name__}")
        differences = self._format.differences(other._format)
        if differences:
            raise WireFormatError(
                f"these sketches do not add up: {differences}; create both with one SketchFormat"
            )
        if np.may_share_memory(self._cells, other._cells):
            raise WireFormatError(
                "this would merge a sketch with itself; merge a copy() if doubling is meant"
            )
        np.add(self._cells, other._cells, out=self._cells)

    def __iadd__(self, other: CountSketch[Any]) -> CountSketch[ArrayT]:
        self.merge(other)
        return self

    def estimate(self, indices: AnyArray) -> ArrayT:
        """Return unbiased estimates of the vector at `indices`, float32.

        Raises:
            ConfigError: an index is out of range.
            InputTypeError: not contiguous 1-D int64 indices.
        """
        return like(self._estimate(self._checked_indices(indices)), self.table)

    def heavy_hitters(self, k: int) -> tuple[ArrayT, ArrayT]:
        """Return the k coordinates of largest |estimate|, as `heavy_coordinates`, and their estimates.

        Returns:
            int64 indices, ascending, and float32 estimates.

        Raises:
            ConfigError: k is below 1 or above the dimension.
            WireFormatError: the table holds NaN or infinity.
        """
        indices = self.heavy_coordinates(k)
        return indices, self.estimate(indices)

    def heavy_coordinates(self, k: int) -> ArrayT:
        """Return the k coordinates of largest |estimate|, int64, ascending.

        A pure function of the table: ties go to the lowest index, and where fewer than k estimates
        differ from zero the lowest of the remaining indices fill up.

        Raises:
            ConfigError: k is below 1 or above the dimension.
            WireFormatError: the table holds NaN or infinity.
        """
        count = checked_k(k, self._format.dimension, "dimension of the vector")
        # A sum of float32 in float64 cannot overflow, so it is finite just when all cells are.
        if not math.isfinite(np.add.reduce(self._cells, axis=None, dtype=np.float64)):
            raise WireFormatError(
                "the table holds NaN or infinity, so no order of the estimates exists; "
                "check the encoded values, or the range of the dtype it travelled in"
            )
        indices = kernels.heavy_hitters(
            self._cells, self._format.seed, self._format.dimension, count, get_num_threads()
        )
        return like(indices, self.table)

    def l2_estimate(self) -> float:
        """Return an estimate of the vector's Euclidean norm: from the median of the rows' energies.

        Source: Alon, Matias and Szegedy (1996), the second frequency moment.
        """
        energies = [np.square(row, dtype=np.float64).sum() for row in self._cells]
        return math.sqrt(np.median(energies))

    def zero_(self) -> None:
        """Set all cells to zero."""
        self._cells.fill(0.0)

    def copy(self) -> CountSketch[ArrayT]:
        """Return a sketch with its own table of the same kind."""
        return CountSketch(self._format, like(self._cells.copy(), self.table))

    def to_bytes(self, dtype: serialisation.CellType = "float32") -> bytes:
        """Return the sketch as bytes that carry their format and a checksum.

        float16 and bfloat16 halve the size and round each cell to nearest even.

        Raises:
            ConfigError: unknown dtype.
            WireFormatError: a cell is not finite, or too large for `dtype`.
        """
        return serialisation.encode(self._format, self._cells, dtype)

    @staticmethod
    def from_bytes(data: bytes | bytearray | memoryview) -> CountSketch[NDArray[Any]]:
        """Read what `to_bytes` wrote into a sketch with a new NumPy table.

        Raises:
            InputTypeError: `data` is not bytes-like.
            WireFormatError: not a complete, undamaged sketch of this version; nothing was allocated
                that is larger than twice the data.
        """
        return CountSketch(*serialisation.decode(data))

    def _checked_indices(self, indices: object) -> NDArray[Any]:
        view = index_view(indices, "indices")
        if view.size and not (0 <= view.min() and view.max() < self._format.dimension):
            raise ConfigError(
                f"indices run from {view.min()} to {view.max()}, expected 0 to "
                f"{self._format.dimension - 1} for dimension {self._format.dimension}"
            )
        return view

    def _estimate(self, indices: NDArray[Any]) -> NDArray[Any]:
        out = np.empty(indices.size, dtype=np.float32)
        kernels.estimate(self._cells, self._format.seed, indices, out, get_num_threads())
        return out
