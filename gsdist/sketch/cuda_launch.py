"""Launch kernels on a GPU: those nvcc built, or the same source compiled by NVRTC through CuPy."""

from __future__ import annotations

import functools
import importlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsdist.errors import DeviceError
from gsdist.sketch.cuda_kernels import THREADS, Argument, CudaKernels, Launcher

__all__ = ["NVRTC_OPTIONS", "as_words", "cuda_kernels", "kernel_source"]

NVRTC_OPTIONS = ("--std=c++17", "--fmad=false")
"""Contraction off, as for the CPU: a fused multiply-add would change results."""


def kernel_source() -> str:
    """Return the kernels as one file without includes, as the build wrote it.

    Raises:
        DeviceError: the build has not written it.
    """
    path = Path(__file__).parents[1] / "_kernels.cu"
    if not path.exists():
        raise DeviceError(
            "gsdist/_kernels.cu is missing, so no GPU kernels can be compiled; reinstall gsdist "
            "(`pip install --force-reinstall gsdist`, or `pip install -e .` in a checkout)"
        )
    return path.read_text()


def as_words(arguments: tuple[Argument, ...]) -> list[int]:
    """Return the arguments of a kernel as words of 64 bits, a float32 in the low half."""
    return [_word(argument) for argument in arguments]


def _word(argument: Argument) -> int:
    if argument is None:
        return 0
    if isinstance(argument, Tensor):
        return argument.data_ptr()
    if isinstance(argument, float):
        return int.from_bytes(struct.pack("<f4x", argument), "little")
    return argument


def _device_of(arguments: tuple[Argument, ...]) -> int:
    devices = {argument.device for argument in arguments if isinstance(argument, Tensor)}
    (device,) = devices
    return device.index


class _BuiltLauncher:
    """Launch the kernels in the extension `gsdist._cuda`."""

    def __init__(self, extension: Any) -> None:
        self._extension = extension

    def launch(self, kernel: str, thread_blocks: int, arguments: tuple[Argument, ...]) -> None:
        """Start a kernel in torch's current stream on the tensors' device."""
        device = _device_of(arguments)
        stream = torch.cuda.current_stream(device).cuda_stream
        try:
            self._extension.launch(kernel, thread_blocks, device, stream, as_words(arguments))
        except RuntimeError as error:
            raise DeviceError(f"kernel {kernel} could not be started: {error}") from error


class _CompiledLauncher:
    """Launch kernels that CuPy compiles at first use and keeps in its cache on disk."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._module = cupy.RawModule(code=kernel_source(), options=NVRTC_OPTIONS)

    def launch(self, kernel: str, thread_blocks: int, arguments: tuple[Argument, ...]) -> None:
        """Start a kernel in torch's current stream on the tensors' device."""
        device = _device_of(arguments)
        stream = self._cupy.cuda.Stream.from_external(torch.cuda.current_stream(device))
        with self._cupy.cuda.Device(device), stream:
            function = self._module.get_function(f"gsdist_{kernel}")
            function((thread_blocks,), (THREADS,), tuple(map(_scalar, arguments)))


def _scalar(argument: Argument) -> np.float32 | np.uint64:
    return np.float32(argument) if isinstance(argument, float) else np.uint64(_word(argument))


@functools.cache
def cuda_kernels() -> CudaKernels:
    """Return the kernels for this machine's GPUs.

    Raises:
        DeviceError: none were built, and CuPy is not there to compile them.
    """
    return CudaKernels(_launcher())


def _launcher() -> Launcher:
    try:
        return _BuiltLauncher(importlib.import_module("gsdist._cuda"))
    except ImportError as not_built:
        try:
            cupy = importlib.import_module("cupy")
        except ImportError as missing:
            raise DeviceError(
                f"this gsdist was built without GPU kernels ({not_built}), and CuPy, which could "
                f"compile them, cannot be imported ({missing}); reinstall gsdist where nvcc is, or "
                "`pip install 'gsdist[cuda]'`"
            ) from missing
        return _CompiledLauncher(cupy)
