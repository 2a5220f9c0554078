"""Build the emulation of a GPU and start kernels in it."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from gsdist.sketch.cuda_launch import as_words

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("launch.cpp")
FLAGS = [
    "-std=c++17",
    "-O1",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-shared",
    "-fPIC",
]

_ONE_AT_A_TIME = threading.Lock()
"""The emulated threads of a kernel are fibers of one real thread."""


@functools.cache
def _library() -> ctypes.CDLL:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("the emulation of a GPU needs a C++ compiler")
    sources = sorted([*SOURCE.parent.glob("*.[hc]*"), *(ROOT / "csrc").rglob("*.*h")])
    text = b"".join(path.read_bytes() for path in sources)
    digest = hashlib.sha256(text + " ".join([compiler, *FLAGS]).encode()).hexdigest()[:16]
    path = ROOT / "build" / "tests" / f"emulation-{digest}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(unfinished)], check=True)
        unfinished.replace(path)
    library = ctypes.CDLL(str(path))
    word = ctypes.c_uint64
    words = ctypes.POINTER(word)
    library.launch.argtypes = [ctypes.c_char_p, word, word, word, word, words, word]
    library.launch.restype = ctypes.c_char_p
    return library


class EmulatedLauncher:
    """Run kernels on the CPU, on CPU tensors.

    Args:
        shuffle: 0 runs threads and blocks in ascending order, another number in an order of its own.
    """

    def __init__(self, shuffle: int = 0) -> None:
        self._shuffle = shuffle

    def launch(self, kernel, thread_blocks, arguments):
        """Run a kernel to its end."""
        self.launch_part(kernel, thread_blocks, 0, thread_blocks, arguments)

    def launch_part(self, kernel, thread_blocks, begin, end, arguments):
        """Run only the thread blocks begin..end-1 of the grid."""
        words = as_words(arguments)
        with _ONE_AT_A_TIME:
            error = _library().launch(
                kernel.encode(),
                thread_blocks,
                begin,
                end,
                self._shuffle,
                (ctypes.c_uint64 * len(words))(*words),
                len(words),
            )
        if error is not None:
            raise RuntimeError(error.decode())
