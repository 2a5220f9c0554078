"""Run what reducers need where the tensors are: on the CPU, or on a GPU."""

import torch
from torch import Tensor

from gsdist.sketch import cuda, select
from gsdist.sketch.count_sketch import CountSketch
from gsdist.sketch.cuda import CudaSketch
from gsdist.sketch.format import SketchFormat

__all__ = ["Sketch", "compensate", "new_sketch", "sketch_on", "top_k"]

Sketch = CountSketch[Tensor] | CudaSketch


def sketch_on(table: Tensor, sketch_format: SketchFormat) -> Sketch:
    """Return the sketch that a float32 table (rows, columns) holds, where it is; arguments are checked."""
    if table.device.type == "cpu":
        return CountSketch(sketch_format, table)
    return CudaSketch(sketch_format, table)


def new_sketch(sketch_format: SketchFormat, device: torch.device) -> Sketch:
    """Return an empty sketch on a device."""
    return sketch_on(torch.zeros(sketch_format.table_shape, device=device), sketch_format)


def top_k(values: Tensor, k: int) -> Tensor:
    """Return the k indices of largest |value|, ascending int64; ties go to the lowest index.

    Raises:
        ConfigError: k is out of range.
        InputTypeError: `values` is not a contiguous 1-D float32 tensor.
    """
    return select.top_k(values, k) if values.device.type == "cpu" else cuda.top_k(values, k)


def compensate(
    out: Tensor,
    residual: Tensor,
    gradient: Tensor,
    *,
    momentum: Tensor | None,
    momentum_factor: float,
    nesterov: bool,
    scale: float,
) -> bool | Tensor:
    """Write residual + update to `out`, as `gsdist.sketch.select.compensate` says.

    Returns whether all of it is finite; on a GPU as a scalar there, not waited for.

    Raises:
        ConfigError: the lengths differ.
        InputTypeError: a tensor is not contiguous, 1-D and float32; on a GPU the gradient may be narrower.
    """
    run = select.compensate if out.device.type == "cpu" else cuda.compensate
    finite: bool | Tensor = run(
        out,
        residual,
        gradient,
        momentum=momentum,
        momentum_factor=momentum_factor,
        nesterov=nesterov,
        scale=scale,
    )
    return finite
