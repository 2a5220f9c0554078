"""The baselines: C++ loops compiled on the fly, and a Count-Sketch from torch operations."""

import ctypes
import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.environment import ROOT

SOURCE = Path(__file__).with_name("baselines.cpp")
HEADERS = ROOT / "csrc"
FLAGS = ["-std=c++17", "-O3", "-march=native", "-Wall", "-Wextra", "-shared", "-fPIC", "-pthread"]


def compile_baselines() -> ctypes.CDLL:
    """Compile baselines.cpp for this machine into build/ unless that is done, and load it."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise SystemExit("benchmarks.kernels needs a C++ compiler: install g++ or set CXX")
    sources = [SOURCE, HEADERS / "hash.h", HEADERS / "portable.h"]
    text = b"".join(path.read_bytes() for path in sources)
    digest = hashlib.sha256(text + " ".join([compiler, *FLAGS]).encode()).hexdigest()[:16]
    library = ROOT / "build" / "benchmarks" / f"baselines-{digest}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        unfinished = library.with_suffix(f".{os.getpid()}.tmp")
        command = [compiler, *FLAGS, f"-I{HEADERS}", str(SOURCE), "-o", str(unfinished)]
        subprocess.run(command, check=True)
        unfinished.replace(library)
    return _declare(ctypes.CDLL(str(library)))


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    address, size, number = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int
    table = [address, number, size, size]  # cells, rows, columns, seed
    for name in ("read_unrolled", "read_memcpy"):
        function = getattr(library, name)
        function.argtypes, function.restype = [address, size, number], ctypes.c_float
    encode = [*table, address, size, number]
    library.per_coordinate_encode.argtypes = library.vectorised_encode.argtypes = encode
    library.vectorised_encode.restype = None
    library.per_coordinate_estimate.argtypes = [*table, address, address, size, number]
    library.per_coordinate_heavy_hitters.argtypes = [*table, size, size, address, number]
    for name in ("encode", "estimate", "heavy_hitters"):
        getattr(library, f"per_coordinate_{name}").restype = None
    return library


@dataclass
class TorchSketch:
    """A Count-Sketch as CSVec does it: buckets and signs of every coordinate are tables.

    The hashes of one row serve for all rows, which saves memory and favours torch.
    """

    table: torch.Tensor
    buckets: torch.Tensor
    signs: torch.Tensor

    @classmethod
    def random(cls, rows: int, columns: int, dimension: int) -> "TorchSketch":
        """Return an empty sketch with random buckets and signs."""
        generator = torch.Generator().manual_seed(0)
        buckets = torch.randint(columns, (dimension,), generator=generator)
        signs = (
            torch.randint(2, (dimension,), generator=generator).to(torch.float32).mul_(2).sub_(1)
        )
        return cls(torch.zeros(rows, columns), buckets, signs)

    def encode_bincount(self, values: torch.Tensor) -> None:
        """Add the values by one weighted bincount per row, as CSVec does."""
        for row in self.table:
            row += torch.bincount(self.buckets, weights=self.signs * values, minlength=len(row))

    def encode_index_add(self, values: torch.Tensor) -> None:
        """Add the values by one index_add_ per row."""
        for row in self.table:
            row.index_add_(0, self.buckets, self.signs * values)

    def estimate(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the median over the rows of sign * cell."""
        buckets, signs = self.buckets[indices], self.signs[indices]
        return torch.stack([row[buckets] * signs for row in self.table]).median(dim=0).values

    def heavy_hitters(self, k: int) -> torch.Tensor:
        """Return the k coordinates of largest |estimate|, after estimating all."""
        rows = torch.stack([row[self.buckets] * self.signs for row in self.table])
        return rows.median(dim=0).values.abs_().topk(k).indices
