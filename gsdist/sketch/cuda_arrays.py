"""View what users pass, torch tensors or CuPy arrays on a GPU, as checked tensors; no copies."""

from __future__ import annotations

import contextlib
import sys
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.utils.dlpack
from torch import Tensor

from gsdist.errors import ConfigError, InputTypeError

__all__ = ["device_view", "like_on_device", "on_stream_of", "same_device", "same_length"]

_DEVICE = "cuda"


def device_view(
    array: object, name: str, *dtypes: torch.dtype, dimensions: int = 1, aligned_to: int = 1
) -> Tensor:
    """View `array` as a contiguous tensor on a GPU of one of the dtypes.

    Raises:
        InputTypeError: another type, dtype, device, layout, alignment or number of dimensions.
    """
    if isinstance(array, Tensor):
        tensor = array
    elif _cupy_of(array) is not None:
        tensor = torch.utils.dlpack.from_dlpack(array)
    else:
        raise InputTypeError(
            f"{name}: expected a CUDA tensor or CuPy array, got {type(array).__name__}"
        )
    if tensor.device.type != _DEVICE:
        raise InputTypeError(
            f"{name} is on device {tensor.device}, expected one on a GPU; pass t.to('cuda')"
        )
    if tensor.requires_grad:
        raise InputTypeError(
            f"{name} requires a gradient, but sketching is not differentiable; pass t.detach()"
        )
    if tensor.dtype not in dtypes:
        expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        found = str(tensor.dtype).removeprefix("torch.")
        raise InputTypeError(f"{name}: expected {expected}, got {found}; convert it with t.to()")
    if tensor.layout != torch.strided or not tensor.is_contiguous() or tensor.is_neg():
        raise InputTypeError(f"{name} is not a contiguous array; pass t.contiguous()")
    if tensor.ndim != dimensions:
        raise InputTypeError(
            f"{name}: expected {dimensions} dimension(s), got shape {tuple(tensor.shape)}"
        )
    if tensor.data_ptr() % aligned_to:
        raise InputTypeError(
            f"{name} does not begin at a multiple of {aligned_to} bytes; pass t.clone()"
        )
    return tensor


def same_device(first: Tensor, name: str, second: Tensor, other_name: str) -> None:
    """Check that two arrays are on one GPU.

    Raises:
        InputTypeError: they are not.
    """
    if first.device != second.device:
        raise InputTypeError(
            f"{name} is on {first.device}, {other_name} on {second.device}; pass arrays of one GPU"
        )


def same_length(first: Tensor, name: str, second: Tensor, other_name: str) -> None:
    """Check that two vectors have one length and are on one GPU.

    Raises:
        ConfigError: the lengths differ.
        InputTypeError: the GPUs differ.
    """
    if first.numel() != second.numel():
        raise ConfigError(
            f"{name} has {first.numel()} values, {other_name} has {second.numel()}; "
            "pass equal lengths"
        )
    same_device(first, name, second, other_name)


def like_on_device(tensor: Tensor, kind: Any) -> Any:
    """Return `tensor` as a CuPy array (same memory) if `kind` is one, else as it is."""
    cupy = _cupy_of(kind)
    return tensor if cupy is None else cupy.from_dlpack(tensor)


def on_stream_of(array: object) -> AbstractContextManager[Any]:
    """Make CuPy's current stream that of torch too if `array` is a CuPy array."""
    cupy = _cupy_of(array)
    if cupy is None:
        return contextlib.nullcontext()
    stream = torch.cuda.ExternalStream(cupy.cuda.get_current_stream().ptr)  # type: ignore[no-untyped-call]
    return torch.cuda.stream(stream)


def _cupy_of(array: object) -> Any:
    """Return CuPy if `array` is one of its arrays, else None."""
    cupy = sys.modules.get("cupy")  # an array can only come from a CuPy already imported
    return cupy if cupy is not None and isinstance(array, cupy.ndarray) else None
