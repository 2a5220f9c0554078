"""Tensors that say they are on a GPU, hold CPU memory, and refuse what a GPU's would refuse.

They show, without a GPU, whether code keeps its tensors on one device. Every operation runs on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from tests.emulation.launcher import EmulatedLauncher

DEVICE = torch.device("meta")
"""Stands for a GPU: the one other device that torch knows without a driver."""
_aten = torch.ops.aten
_CROSSING = {_aten.copy_.default, _aten._to_copy.default, _aten._local_scalar_dense.default}
"""Operations that may see both devices."""
_INDEXING = {_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default}
"""Operations whose indices may be on the CPU."""


class EmulatedTensor(Tensor):
    """Wrap a CPU tensor whose device is reported as `DEVICE`."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> EmulatedTensor:
        wrapper = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        wrapper.inner = inner
        return wrapper

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def tolist(self) -> list[Any]:
        return self.inner.tolist()

    def __repr__(self) -> str:
        return f"EmulatedTensor({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """Make `torch.tensor(..., device=DEVICE)` hold its numbers; torch forgets those of a meta tensor."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            kwargs.pop("device")
            return EmulatedTensor(func(*args, **kwargs))
        return func(*args, **kwargs)


@contextmanager
def emulated_device() -> Iterator[None]:
    """Create tensors on `DEVICE` where asked to, in this thread."""
    with _Operations(), _Literals():
        yield


class DeviceLauncher(EmulatedLauncher):
    """Run kernels on what emulated tensors hold."""

    def launch(self, kernel, thread_blocks, arguments):
        assert all(isinstance(a, EmulatedTensor) for a in arguments if isinstance(a, Tensor))
        super().launch(kernel, thread_blocks, arguments)


def to_device(tensor: Tensor) -> Tensor:
    """Copy a CPU tensor to the emulated device."""
    return EmulatedTensor(tensor.detach().clone())


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    wrappers: dict[int, EmulatedTensor] = {}

    def unwrap(value: Any) -> Any:
        if isinstance(value, EmulatedTensor):
            wrappers[id(value.inner)] = value
            return value.inner
        return value

    asked = kwargs.get("device")
    inner_args, inner_kwargs = tree_map(unwrap, args), tree_map(unwrap, kwargs)
    if asked is not None:
        inner_kwargs["device"] = torch.device("cpu")
    if wrappers and func not in _CROSSING:
        _refuse_other_devices(func, args, kwargs)
    result = func(*inner_args, **inner_kwargs)
    on_device = bool(wrappers) if asked is None else torch.device(asked).type == DEVICE.type
    if func is _aten.copy_.default:
        on_device = isinstance(args[0], EmulatedTensor)
    if func is _aten._local_scalar_dense.default or not on_device:
        return result

    def wrap(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        known = wrappers.get(id(value))
        return EmulatedTensor(value) if known is None else known

    return tree_map(wrap, result)


def _refuse_other_devices(func: Any, args: Any, kwargs: Any) -> None:
    seen: list[Tensor] = []
    looked_at = args[:1] if func in _INDEXING else args
    tree_map(
        lambda value: seen.append(value) if isinstance(value, Tensor) else None, (looked_at, kwargs)
    )
    strangers = [t for t in seen if not isinstance(t, EmulatedTensor) and t.ndim > 0]
    if strangers:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {func} got one of shape "
            f"{tuple(strangers[0].shape)} on the CPU"
        )
