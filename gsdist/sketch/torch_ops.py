"""Register the sketch as torch operators, for CPU and CUDA, so that compiled graphs can carry it.

A seed of 2^63 or more does not fit a torch operator's signed integer; pass seed - 2^64.
"""

import torch
from torch import Tensor

from gsdist.sketch import on_device
from gsdist.sketch.format import SketchFormat
from gsdist.sketch.on_device import Sketch, sketch_on

__all__ = [
    "count_sketch_encode_",
    "count_sketch_encode_sparse_",
    "count_sketch_estimate",
    "count_sketch_heavy_hitters",
    "top_k",
]

_DEVICES = ("cpu", "cuda")


def _sketch(table: Tensor, seed: int, dimension: int) -> Sketch:
    rows, columns = table.shape
    sketch_format = SketchFormat(
        rows=rows, columns=columns, seed=seed % (1 << 64), dimension=dimension
    )
    return sketch_on(table, sketch_format)


@torch.library.custom_op(
    "gsdist::count_sketch_encode_", mutates_args=("table",), device_types=_DEVICES
)
def count_sketch_encode_(
    table: Tensor, values: Tensor, offset: int, seed: int, dimension: int
) -> None:
    """Add `values` at coordinates offset, offset + 1, ... to `table` in place."""
    _sketch(table, seed, dimension).encode(values, offset)


@torch.library.custom_op(
    "gsdist::count_sketch_encode_sparse_", mutates_args=("table",), device_types=_DEVICES
)
def count_sketch_encode_sparse_(
    table: Tensor, indices: Tensor, values: Tensor, seed: int, dimension: int
) -> None:
    """Add `values` at coordinates `indices` to `table` in place."""
    _sketch(table, seed, dimension).encode_sparse(indices, values)


@torch.library.custom_op("gsdist::count_sketch_estimate", mutates_args=(), device_types=_DEVICES)
def count_sketch_estimate(table: Tensor, indices: Tensor, seed: int, dimension: int) -> Tensor:
    """Return float32 estimates of the vector at `indices`."""
    return _sketch(table, seed, dimension).estimate(indices)


@torch.library.custom_op(
    "gsdist::count_sketch_heavy_hitters", mutates_args=(), device_types=_DEVICES
)
def count_sketch_heavy_hitters(
    table: Tensor, k: int, seed: int, dimension: int
) -> tuple[Tensor, Tensor]:
    """Return the k coordinates of largest |estimate|, ascending int64, and their estimates."""
    return _sketch(table, seed, dimension).heavy_hitters(k)


@torch.library.custom_op("gsdist::top_k", mutates_args=(), device_types=_DEVICES)
def top_k(values: Tensor, k: int) -> Tensor:
    """Return the k indices of largest |value|, ascending int64; ties go to the lowest index."""
    return on_device.top_k(values, k)


@count_sketch_encode_.register_fake
def _(table: Tensor, values: Tensor, offset: int, seed: int, dimension: int) -> None:
    return None


@count_sketch_encode_sparse_.register_fake
def _(table: Tensor, indices: Tensor, values: Tensor, seed: int, dimension: int) -> None:
    return None


@count_sketch_estimate.register_fake
def _(table: Tensor, indices: Tensor, seed: int, dimension: int) -> Tensor:
    return table.new_empty(indices.shape)


@count_sketch_heavy_hitters.register_fake
def _(table: Tensor, k: int, seed: int, dimension: int) -> tuple[Tensor, Tensor]:
    return table.new_empty(k, dtype=torch.int64), table.new_empty(k)


@top_k.register_fake
def _(values: Tensor, k: int) -> Tensor:
    return values.new_empty(k, dtype=torch.int64)
