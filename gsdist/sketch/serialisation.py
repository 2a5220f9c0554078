"""Write sketches as bytes and read them back, trusting nothing in what is read.

The layout is drawn byte by byte in `docs/sketch-format.md`.
"""

import struct
import zlib
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from gsdist.errors import ConfigError, InputTypeError, WireFormatError
from gsdist.sketch.format import SketchFormat

__all__ = ["HEADER_BYTES", "MAGIC", "CellType", "decode", "encode"]

Array = NDArray[Any]
CellType = Literal["float32", "float16", "bfloat16"]

MAGIC = b"gsdistCS"
# magic, version, cell type, rows, columns, seed, dimension; then the checksum and four zero bytes
_DESCRIPTION = struct.Struct("<8sHHIQQQ")
_CHECKSUM = struct.Struct("<II")
HEADER_BYTES = _DESCRIPTION.size + _CHECKSUM.size

_CODES: dict[str, int] = {"float32": 1, "float16": 2, "bfloat16": 3}
_STORED_AS: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 2: np.dtype("<f2"), 3: np.dtype("<u2")}


def encode(sketch_format: SketchFormat, table: Array, dtype: CellType) -> bytes:
    """Return header and cells as bytes.

    Raises:
        ConfigError: `dtype` is not one of the cell types.
        WireFormatError: a cell is not finite, or too large for `dtype`.
    """
    if dtype not in _CODES:
        raise ConfigError(f"dtype={dtype!r}: expected one of {', '.join(get_args(CellType))}")
    if not np.isfinite(table).all():
        raise WireFormatError(
            "the table holds NaN or infinity, which has no place in a serialised sketch; "
            "check the encoded values"
        )
    description = _DESCRIPTION.pack(
        MAGIC,
        sketch_format.version,
        _CODES[dtype],
        sketch_format.rows,
        sketch_format.columns,
        sketch_format.seed,
        sketch_format.dimension,
    )
    cells = _narrow(table, dtype)
    return description + _CHECKSUM.pack(_checksum(description, cells), 0) + cells


def decode(data: bytes | bytearray | memoryview) -> tuple[SketchFormat, Array]:
    """Check the bytes and return their format and a new float32 table.

    Nothing is allocated before the length of the data has been compared with what the header says.

    Raises:
        InputTypeError: `data` is not bytes-like.
        WireFormatError: the bytes are not a complete, undamaged sketch of this version.
    """
    view = _bytes_view(data)
    if len(view) < HEADER_BYTES:
        raise WireFormatError(
            f"{len(view)} bytes are too few for a sketch: the header alone has {HEADER_BYTES}"
        )
    description = view[: _DESCRIPTION.size]
    sketch_format, code = _read_description(description)
    stored = _STORED_AS[code]
    expected = HEADER_BYTES + sketch_format.rows * sketch_format.columns * stored.itemsize
    if len(view) != expected:
        raise WireFormatError(
            f"a sketch of {sketch_format.rows} x {sketch_format.columns} cells of "
            f"{stored.itemsize} bytes has {expected} bytes, got {len(view)}"
        )
    checksum, zero = _CHECKSUM.unpack(view[_DESCRIPTION.size : HEADER_BYTES])
    cells = view[HEADER_BYTES:]
    found = _checksum(description, cells)
    if found != checksum or zero != 0:
        raise WireFormatError(
            f"damaged sketch: checksum {found:#010x}, the header says {checksum:#010x} "
            f"(and {zero:#x} where 0 belongs)"
        )
    table = _widen(np.frombuffer(cells, dtype=stored), code).reshape(sketch_format.table_shape)
    if not np.isfinite(table).all():
        raise WireFormatError("the sketch holds NaN or infinity")
    return sketch_format, table


def _bytes_view(data: bytes | bytearray | memoryview) -> memoryview:
    if not isinstance(data, bytes | bytearray | memoryview):
        raise InputTypeError(f"data: expected bytes, got {type(data).__name__}")
    try:
        return memoryview(data).cast("B")
    except TypeError as error:
        raise InputTypeError(f"data: expected contiguous memory ({error})") from None


def _read_description(description: memoryview) -> tuple[SketchFormat, int]:
    magic, version, code, rows, columns, seed, dimension = _DESCRIPTION.unpack(description)
    if magic != MAGIC:
        raise WireFormatError(f"not a sketch: it starts with {magic!r}, expected {MAGIC!r}")
    if version != SketchFormat.version:
        raise WireFormatError(
            f"sketch of version {version}, this gsdist reads version {SketchFormat.version}"
        )
    if code not in _STORED_AS:
        raise WireFormatError(f"unknown cell type {code}, expected one of {sorted(_STORED_AS)}")
    try:
        return SketchFormat(rows=rows, columns=columns, seed=seed, dimension=dimension), code
    except ConfigError as error:
        raise WireFormatError(f"impossible sketch header: {error}") from None


def _checksum(description: bytes | memoryview, cells: bytes | memoryview) -> int:
    return zlib.crc32(cells, zlib.crc32(description))


def _narrow(table: Array, dtype: CellType) -> bytes:
    if dtype == "float32":
        return table.astype("<f4", copy=False).tobytes()
    if dtype == "float16":
        with np.errstate(over="ignore"):  # reported below, with the way out
            cells = table.astype("<f2")
        fits = bool(np.isfinite(cells).all())
    else:
        cells = _to_bfloat16(table)
        fits = bool((cells & 0x7F80 != 0x7F80).all())
    if not fits:
        largest = float(np.abs(table).max())
        raise WireFormatError(
            f"the largest cell, {largest:g}, is too large for {dtype}; use "
            "dtype='float32' or scale the values down before encoding"
        )
    return cells.tobytes()


def _to_bfloat16(table: Array) -> Array:
    """Keep the upper half of each float32, rounded to nearest, ties to even."""
    bits = table.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    return rounded.astype("<u2")


def _widen(cells: Array, code: int) -> Array:
    if code == _CODES["bfloat16"]:
        return (cells.astype(np.uint32) << 16).view(np.float32)
    return cells.astype(np.float32)
