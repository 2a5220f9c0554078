"""View what users pass, NumPy arrays or torch CPU tensors, as checked NumPy arrays; no copies."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from gsdist.errors import InputTypeError

if TYPE_CHECKING:
    import torch

__all__ = ["AnyArray", "ArrayT", "float_view", "index_view", "like", "writable_float_view"]

Array = NDArray[Any]
AnyArray: TypeAlias = "NDArray[Any] | torch.Tensor"
ArrayT = TypeVar("ArrayT", bound="NDArray[Any] | torch.Tensor")


def float_view(array: object, name: str, *, dimensions: int = 1) -> Array:
    """View `array` as a C-contiguous float32 NumPy array with the given number of dimensions.

    Raises:
        InputTypeError: another type, dtype, device, layout or number of dimensions.
    """
    return _view(array, name, "float32", dimensions)


def writable_float_view(array: object, name: str, *, dimensions: int = 1) -> Array:
    """View `array` as `float_view` does, and refuse read-only memory.

    Raises:
        InputTypeError: as `float_view`, or the memory is read-only.
    """
    view = float_view(array, name, dimensions=dimensions)
    if not view.flags.writeable:
        raise InputTypeError(f"{name} is read-only, but it is written in place; pass a copy")
    return view


def index_view(array: object, name: str) -> Array:
    """View `array` as a contiguous one-dimensional int64 NumPy array.

    Raises:
        InputTypeError: another type, dtype, device, layout or number of dimensions.
    """
    return _view(array, name, "int64", 1)


def like(array: Array, kind: ArrayT) -> ArrayT:
    """Return `array` as a torch tensor (same memory) if `kind` is one, else as it is."""
    if isinstance(kind, np.ndarray):
        return cast(ArrayT, array)
    import torch

    return cast(ArrayT, torch.from_numpy(array))


_DTYPES = {"float32": np.dtype(np.float32), "int64": np.dtype(np.int64)}


def _view(array: object, name: str, dtype: str, dimensions: int) -> Array:
    torch = sys.modules.get("torch")  # a tensor can only come from a torch already imported
    if torch is not None and isinstance(array, torch.Tensor):
        view = _view_of_tensor(array, name, dtype)
    elif isinstance(array, np.ndarray):
        if array.dtype != _DTYPES[dtype]:
            raise _wrong_dtype(array.dtype, dtype, name)
        view = array
    else:
        raise InputTypeError(
            f"{name}: expected a NumPy array or a torch CPU tensor, got {type(array).__name__}"
        )
    if not (view.flags.c_contiguous and view.flags.aligned):
        raise InputTypeError(
            f"{name} is not contiguous (shape {view.shape}, strides {view.strides} bytes); "
            "pass a contiguous copy: np.ascontiguousarray(a) or t.contiguous()"
        )
    if view.ndim != dimensions:
        raise InputTypeError(
            f"{name}: expected {dimensions} dimension(s), got shape {view.shape}"
            + ("; pass a.reshape(-1)" if dimensions == 1 else "")
        )
    return view


def _view_of_tensor(tensor: torch.Tensor, name: str, dtype: str) -> Array:
    import torch

    if tensor.layout != torch.strided:
        raise InputTypeError(
            f"{name} is a sparse tensor ({tensor.layout}); pass indices and values to "
            "encode_sparse(), or t.to_dense()"
        )
    if tensor.device.type != "cpu":
        raise InputTypeError(
            f"{name} is on device {tensor.device}; sketching runs on the CPU: pass t.cpu()"
        )
    if tensor.requires_grad:
        raise InputTypeError(
            f"{name} requires a gradient, but sketching is not differentiable; pass t.detach()"
        )
    if tensor.dtype is not getattr(torch, dtype):
        raise _wrong_dtype(tensor.dtype, dtype, name)
    return tensor.resolve_neg().numpy()


def _wrong_dtype(got: object, expected: str, name: str) -> InputTypeError:
    found = str(got).removeprefix("torch.")
    if "complex" in found and expected == "float32":
        way_out = "sketch the real view, view(float32) or torch.view_as_real(t).reshape(-1)"
    else:
        way_out = f"convert with a.astype(np.{expected}) or t.to(torch.{expected})"
    return InputTypeError(f"{name}: expected {expected}, got {found}; {way_out}")
