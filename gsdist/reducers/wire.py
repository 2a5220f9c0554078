"""Carry values that are summed over the wire in single or half precision.

All ranks use one scale, a power of two taken from the largest value of the previous sum, which is the same
on all of them. Before the first sum, and when a half-precision sum overflowed, float32 is used.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from gsdist.errors import ConfigError

__all__ = ["SumWire", "WireDtype", "largest", "require_wire_dtype", "torch_dtype"]

WireDtype = Literal["float32", "bfloat16", "float16"]

_HEADROOM = 256.0
"""How much larger than the last sum the next may grow before float16 overflows: gradients were seen to jump
a hundredfold. It costs no precision: what then falls below float16's normal range is less than a millionth of
the largest value."""
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


def largest(values: Tensor) -> float:
    """Return the largest magnitude of values; NaN or infinity if any of them is not finite."""
    low, high = torch.aminmax(values)
    return max(-low.item(), high.item())


class SumWire:
    """Pack float32 values and a tail of small integers into the buffer of an all-reduce, and back."""

    def __init__(self, dtype: WireDtype) -> None:
        self.dtype = torch_dtype(dtype)
        self.peak = 0.0
        """Largest magnitude in the last remembered sum; 0 before the first."""

    def pack(self, values: Tensor, tail: Tensor, *, exact: bool = False) -> Tensor:
        """Return a 1-D buffer of scaled values and, unscaled, the tail; `exact` forces float32."""
        dtype = torch.float32 if exact else self._next_dtype()
        count = values.numel()
        buffer = torch.empty(count + tail.numel(), dtype=dtype, device=values.device)
        scale = self._scale(dtype)
        if scale == 1.0:
            buffer[:count].copy_(values.view(-1))
        else:
            torch.mul(values.view(-1), scale, out=buffer[:count])
        buffer[count:].copy_(tail)
        return buffer

    def unpack(self, buffer: Tensor, values: Tensor) -> None:
        """Write a buffer's values, summed or not, unscaled into a float32 tensor."""
        flat = values.view(-1)
        flat.copy_(buffer[: flat.numel()])
        scale = self._scale(buffer.dtype)
        if scale != 1.0:
            flat.mul_(1.0 / scale)

    def remember(self, sums: Tensor) -> None:
        """Let the next scale follow from these sums, which are the same on all ranks."""
        self.peak = largest(sums)

    def _next_dtype(self) -> torch.dtype:
        unscaled_half = self.dtype == torch.float16 and self.peak == 0.0
        return torch.float32 if unscaled_half else self.dtype

    def _scale(self, dtype: torch.dtype) -> float:
        if dtype != torch.float16:
            return 1.0
        exponent = math.floor(math.log2(torch.finfo(dtype).max / (_HEADROOM * self.peak)))
        return 2.0 ** max(-_MAX_EXPONENT, min(_MAX_EXPONENT, exponent))
