"""Refuse tensors that do not fit an operation, before anything is sent."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gsdist.collectives.mpi.channel import Channel
from gsdist.errors import InputTypeError

__all__ = [
    "part_sizes",
    "require_equal",
    "require_one_dtype",
    "require_one_per_rank",
    "require_whole",
]


def require_one_dtype(channel: Channel, name: str, tensors: Sequence[Tensor]) -> torch.dtype:
    """Return the dtype that all tensors have.

    Raises:
        InputTypeError: they differ in it.
    """
    dtype = tensors[0].dtype
    for tensor in tensors:
        if tensor.dtype != dtype:
            raise InputTypeError(
                f"{channel}: {name} got tensors of {tensor.dtype} and {dtype}; expected one dtype"
            )
    return dtype


def require_one_per_rank(channel: Channel, name: str, what: str, tensors: Sequence[Tensor]) -> None:
    """Check that there are as many tensors as ranks.

    Raises:
        InputTypeError: there are not.
    """
    if len(tensors) != channel.size:
        raise InputTypeError(
            f"{channel}: {name} got {len(tensors)} {what}; expected one for each of {channel.size} ranks"
        )


def require_equal(channel: Channel, name: str, model: Tensor, tensors: Sequence[Tensor]) -> None:
    """Check that tensors are like another one.

    Raises:
        InputTypeError: one has another dtype or number of elements.
    """
    require_one_dtype(channel, name, [model, *tensors])
    for tensor in tensors:
        if tensor.numel() != model.numel():
            raise InputTypeError(
                f"{channel}: {name} got tensors of shape {tuple(tensor.shape)} and {tuple(model.shape)}; "
                "they must be of equal size"
            )


def require_whole(channel: Channel, name: str, *, whole: Tensor, part: Tensor) -> None:
    """Check that one tensor has room for another one of every rank.

    Raises:
        InputTypeError: it has not, or they differ in dtype.
    """
    require_one_dtype(channel, name, [whole, part])
    if whole.numel() != channel.size * part.numel():
        raise InputTypeError(
            f"{channel}: {name} got tensors of shape {tuple(whole.shape)} and {tuple(part.shape)}; "
            f"the larger must be {channel.size} times as long, once per rank"
        )


def part_sizes(channel: Channel, tensor: Tensor, rows: Sequence[int]) -> list[int]:
    """Return how many elements go to or come from each rank; no numbers of rows stand for equal parts.

    Raises:
        InputTypeError: the tensor cannot be split so.
    """
    total = tensor.shape[0] if tensor.dim() else 1
    if not rows:
        rows = [total // channel.size] * channel.size
    if len(rows) != channel.size or sum(rows) != total:
        raise InputTypeError(
            f"{channel}: all_to_all_single got a tensor of {total} rows to split as {list(rows)}; expected "
            f"{channel.size} numbers that add up to it, or rows that {channel.size} divides"
        )
    return [count * tensor[0].numel() if count else 0 for count in rows]
