"""Carry a sketch table over the wire in single or half precision.

All ranks use one scale, a power of two taken from the largest cell of the previously merged table, which is
the same on all of them. Before the first merge, and when a half-precision sum overflowed, float32 is used.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from gsdist.errors import ConfigError

__all__ = ["TableWire", "WireDtype", "require_wire_dtype", "torch_dtype"]

WireDtype = Literal["float32", "bfloat16", "float16"]

_HEADROOM = 8.0
"""How much larger than the last merged table the next may grow before float16 overflows."""
_MAX_EXPONENT = 100


def require_wire_dtype(name: str) -> None:
    """Check a wire dtype's name.

    Raises:
        ConfigError: it is none of float32, bfloat16, float16.
    """
    if name not in get_args(WireDtype):
        raise ConfigError(f"wire_dtype is {name!r}; it must be one of {get_args(WireDtype)}")


def torch_dtype(name: WireDtype) -> torch.dtype:
    """Return the torch dtype of a wire dtype."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


class TableWire:
    """Pack a float32 table and a 0/1 flag into the buffer of the first all-reduce, and back."""

    def __init__(self, dtype: WireDtype) -> None:
        self.dtype = torch_dtype(dtype)
        self.peak = 0.0
        """Largest magnitude in the last merged table; 0 before the first."""

    def pack(self, table: Tensor, *, flag: bool, exact: bool = False) -> Tensor:
        """Return a 1-D buffer of the table's cells and the flag.

        `exact` forces float32. The table, shape (rows, columns), float32, is not changed.
        """
        dtype = torch.float32 if exact else self._next_dtype()
        buffer = torch.empty(table.numel() + 1, dtype=dtype, device=table.device)
        scale = self._scale(dtype)
        if scale == 1.0:
            buffer[:-1].copy_(table.view(-1))
        else:
            torch.mul(table.view(-1), scale, out=buffer[:-1])
        buffer[-1] = float(flag)
        return buffer

    def unpack(self, buffer: Tensor, table: Tensor) -> None:
        """Write a summed buffer's cells into the table and remember their largest magnitude."""
        cells = table.view(-1)
        cells.copy_(buffer[:-1])
        scale = self._scale(buffer.dtype)
        if scale != 1.0:
            cells.mul_(1.0 / scale)
        self.peak = float(cells.abs().max())

    def _next_dtype(self) -> torch.dtype:
        unscaled_half = self.dtype == torch.float16 and self.peak == 0.0
        return torch.float32 if unscaled_half else self.dtype

    def _scale(self, dtype: torch.dtype) -> float:
        if dtype != torch.float16:
            return 1.0
        exponent = math.floor(math.log2(torch.finfo(dtype).max / (_HEADROOM * self.peak)))
        return 2.0 ** max(-_MAX_EXPONENT, min(_MAX_EXPONENT, exponent))
