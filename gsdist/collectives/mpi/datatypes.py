"""Say in MPI's words what tensors hold and how they are reduced."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from mpi4py import MPI
from torch import Tensor

from gsdist.errors import InputTypeError

__all__ = ["Reduction", "buffer_of", "reduction_of"]

_DATATYPES: Mapping[torch.dtype, MPI.Datatype] = MappingProxyType(
    {
        torch.float32: MPI.FLOAT,
        torch.float64: MPI.DOUBLE,
        torch.complex64: MPI.C_FLOAT_COMPLEX,
        torch.complex128: MPI.C_DOUBLE_COMPLEX,
        torch.int8: MPI.INT8_T,
        torch.int16: MPI.INT16_T,
        torch.int32: MPI.INT32_T,
        torch.int64: MPI.INT64_T,
        torch.uint8: MPI.UINT8_T,
        torch.uint16: MPI.UINT16_T,
        torch.uint32: MPI.UINT32_T,
        torch.uint64: MPI.UINT64_T,
        torch.bool: MPI.C_BOOL,
    }
)
_BY_SIZE = {1: MPI.UINT8_T, 2: MPI.UINT16_T, 4: MPI.UINT32_T, 8: MPI.UINT64_T}
"""What carries the elements of a dtype that MPI does not know."""

_ARITHMETIC = {
    dist.ReduceOp.SUM: MPI.SUM,
    dist.ReduceOp.AVG: MPI.SUM,
    dist.ReduceOp.PRODUCT: MPI.PROD,
    dist.ReduceOp.MIN: MPI.MIN,
    dist.ReduceOp.MAX: MPI.MAX,
    dist.ReduceOp.BAND: MPI.BAND,
    dist.ReduceOp.BOR: MPI.BOR,
    dist.ReduceOp.BXOR: MPI.BXOR,
}
_LOGICAL = {
    dist.ReduceOp.SUM: MPI.LOR,
    dist.ReduceOp.PRODUCT: MPI.LAND,
    dist.ReduceOp.MIN: MPI.LAND,
    dist.ReduceOp.MAX: MPI.LOR,
    dist.ReduceOp.BAND: MPI.LAND,
    dist.ReduceOp.BOR: MPI.LOR,
    dist.ReduceOp.BXOR: MPI.LXOR,
}
_ON_TENSORS: Mapping[Any, Callable[..., Tensor]] = MappingProxyType(
    {
        dist.ReduceOp.SUM: torch.add,
        dist.ReduceOp.AVG: torch.add,
        dist.ReduceOp.PRODUCT: torch.mul,
        dist.ReduceOp.MIN: torch.minimum,
        dist.ReduceOp.MAX: torch.maximum,
    }
)
"""For floating-point dtypes that MPI does not know; torch computes them."""
_ON_COMPLEX = (dist.ReduceOp.SUM, dist.ReduceOp.AVG)


def buffer_of(tensor: Tensor, *, parts: int = 1) -> list[Any]:
    """Return a contiguous tensor as a buffer that mpi4py takes: address, count per part and datatype."""
    datatype = _DATATYPES.get(tensor.dtype) or _BY_SIZE[tensor.element_size()]
    memory = MPI.buffer.fromaddress(tensor.data_ptr(), tensor.nbytes)
    return [memory, tensor.numel() // parts, datatype]


@dataclass(frozen=True, slots=True)
class Reduction:
    """Say how tensors of a dtype are reduced."""

    average: bool
    """Whether what MPI computes, a sum, is to be divided by the number of ranks."""
    operation: Callable[[], MPI.Op]
    """Return MPI's name for it; to be called on a communication thread, which may have to make it."""


@cache
def reduction_of(kind: Any, dtype: torch.dtype) -> Reduction:
    """Return how to reduce tensors of a dtype so.

    Raises:
        InputTypeError: the two do not go together.
    """
    possible = kind in (_LOGICAL if dtype == torch.bool else _ARITHMETIC)
    if dtype.is_complex:
        possible = kind in _ON_COMPLEX and dtype in _DATATYPES
    elif dtype.is_floating_point:
        possible = kind in _ON_TENSORS and dtype.itemsize > 1
    elif kind == dist.ReduceOp.AVG:
        possible = False
    if not possible:
        raise InputTypeError(
            f"{kind} cannot reduce {dtype}; bitwise operations need integers or bool, averages "
            "floating-point or complex numbers, and 8-bit floats are not reduced at all: convert first"
        )
    average = bool(kind == dist.ReduceOp.AVG)
    if dtype not in _DATATYPES:
        return Reduction(average, cache(lambda: _computed_by_torch(kind, dtype)))
    known = (_LOGICAL if dtype == torch.bool else _ARITHMETIC)[kind]
    return Reduction(average, lambda: known)


def _computed_by_torch(kind: Any, dtype: torch.dtype) -> MPI.Op:
    combine = _ON_TENSORS[kind]

    def reduce(received: Any, own: Any, _: MPI.Datatype) -> None:
        if not own.nbytes:  # algorithms that cut a short vector in parts leave some empty
            return
        one, other = (torch.frombuffer(memory, dtype=dtype) for memory in (received, own))
        combine(one, other, out=other)

    return MPI.Op.Create(reduce, commute=True)
