"""Time the kernels on a GPU against what its memory can do, measured in the same run."""

import argparse
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.kernels.baselines import TorchSketch
from benchmarks.kernels.check import check_device_kernels
from benchmarks.kernels.measure import SEED, Point
from gsdist.sketch.cuda_kernels import THREADS, CudaKernels
from gsdist.sketch.cuda_launch import NVRTC_OPTIONS, cuda_kernels, kernel_source

Action = Callable[[], object]

HEADLINE = Point(dimension=2**28, rows=5, columns=2**20, k=2**18)
SMALL = Point(dimension=2**25, rows=5, columns=2**17, k=2**15)

# Lines of 128 bytes at random places, each added by 8 threads: what an encoder cannot do without.
PROBE = """
extern "C" __global__ void reduce_at_random(float* cells, uint64_t lines, uint64_t seed) {
  const uint64_t thread = gsdist::global_thread();
  const uint64_t line = gsdist::bucket_block(gsdist::mix64(seed + thread / 8), lines);
  gsdist::add_quad(cells + line * 32 + thread % 8 * 4, {{1.0f, 1.0f, 1.0f, 1.0f}, 15});
}
"""
PROBED_LINES = 2**24


def _milliseconds(action: Action, rounds: int) -> float:
    """Return the median time of an action on the GPU, after a first run that does not count."""
    action()
    times = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        action()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def _reduction_rate(table: torch.Tensor, rounds: int) -> float:
    """Return bytes per second of random 128-byte reductions into a table of this size."""
    import cupy

    module = cupy.RawModule(code=kernel_source() + PROBE, options=NVRTC_OPTIONS)
    probe = module.get_function("reduce_at_random")
    cells = cupy.from_dlpack(table)
    arguments = (cells, cupy.uint64(table.numel() // 32), cupy.uint64(SEED))
    stream = cupy.cuda.Stream.from_external(torch.cuda.current_stream())

    def run() -> None:
        with stream:
            probe((PROBED_LINES * 8 // THREADS,), (THREADS,), arguments)

    return 128 * PROBED_LINES / (1e-3 * _milliseconds(run, rounds))


class Workspace:
    """The arrays of one point and what is timed on them."""

    def __init__(self, point: Point, kernels: CudaKernels) -> None:
        self.point, self.kernels = point, kernels
        self.values = torch.randn(point.dimension, device="cuda")
        self.copy = torch.empty_like(self.values)
        self.table = torch.zeros(point.rows, point.columns, device="cuda")
        self.order = kernels.ordered_blocks(self.table, SEED, 0, point.dimension)

    def operations(self) -> dict[str, Action]:
        """Return what is timed; encoding first, selecting reads its table."""
        p, kernels, table, values = self.point, self.kernels, self.table, self.values
        compensate = (self.copy, self.copy, None, values, 1.0, 0.0, False)
        return {
            "encode": lambda: kernels.encode_dense(table, SEED, values, 0),
            "encode_ordered": lambda: kernels.encode_dense_ordered(
                table, SEED, values, 0, self.order
            ),
            "heavy_hitters": lambda: kernels.heavy_hitters(table, SEED, p.dimension, p.k),
            "top_k": lambda: kernels.top_k(values, p.k),
            "compensate": lambda: kernels.compensate(*compensate),
        }

    def torch_encode(self) -> Action:
        """Return encoding by one index_add_ per row on precomputed buckets, as CSVec has them."""
        p = self.point
        sketch = TorchSketch(
            self.table.clone(),
            torch.randint(p.columns, (p.dimension,), device="cuda"),
            torch.randint(2, (p.dimension,), device="cuda").float() * 2 - 1,
        )
        return lambda: sketch.encode_index_add(self.values)


def _measure(point: Point, rounds: int) -> dict[str, float]:
    workspace = Workspace(point, cuda_kernels())
    copy = _milliseconds(lambda: workspace.copy.copy_(workspace.values), rounds)
    rate = _reduction_rate(workspace.table, rounds)
    times = {n: _milliseconds(a, rounds) for n, a in workspace.operations().items()}
    times["torch_index_add"] = _milliseconds(workspace.torch_encode(), rounds)
    return figures(point, copy, rate, times)


def figures(point: Point, copy: float, rate: float, times: Mapping[str, float]) -> dict[str, float]:
    """Return what is printed, from milliseconds, also of copying the vector, and bytes per second reduced.

    Encoding reads the vector once and adds all of it to every row. What takes longer of the two, at full
    speed, is the roofline, of encoding and of selecting, which reads as much.
    """
    vector_bytes = 4 * point.dimension
    bandwidth = 2 * vector_bytes / (1e-3 * copy)
    reading = 1e3 * vector_bytes / bandwidth
    roofline = max(reading, 1e3 * point.rows * vector_bytes / rate)
    return {
        "copy_gigabytes_per_second": 1e-9 * bandwidth,
        "reduction_gigabytes_per_second": 1e-9 * rate,
        "roofline_ms": roofline,
        **{f"{name}_ms": milliseconds for name, milliseconds in times.items()},
        "encode_of_roofline": roofline / times["encode"],
        "ordered_vs_encode": times["encode_ordered"] / times["encode"],
        "select_of_roofline": roofline / times["heavy_hitters"],
        "encode_vs_torch": times["torch_index_add"] / times["encode"],
        "top_k_of_read": reading / times["top_k"],
        "compensate_of_copy": 3 * reading / times["compensate"],
    }


def measure_device(arguments: argparse.Namespace, out: Any) -> dict[str, object]:
    """Print and return the figures of a small and the headline point."""
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.kernels --device cuda needs an NVIDIA GPU")
    print(f"GPU: {torch.cuda.get_device_name()}", file=out)
    results = []
    points = [SMALL] if arguments.quick else [SMALL, HEADLINE]
    for point in points:
        check_device_kernels(cuda_kernels(), torch.device("cuda"), point.rows, point.columns)
    print("all kernels agree with the reference", file=out)
    for point in points:
        row: dict[str, object] = {
            "dimension": point.dimension,
            "rows": point.rows,
            "columns": point.columns,
            "k": point.k,
        }
        row |= _measure(point, arguments.rounds)
        results.append(row)
        for key, value in row.items():
            print(f"{key}: {value}", file=out, flush=True)
    return {"gpu": torch.cuda.get_device_name(), "results": results}
