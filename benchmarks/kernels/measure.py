"""Time kernels and baselines in turn, so that noise on the machine meets all of them alike."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.kernels.baselines import TorchSketch, compile_baselines
from gsdist import _native

SEED = 1
READS = ("read_unrolled", "read_memcpy", "read_torch_sum")
# Above this the torch baseline of heavy_hitters takes gigabytes and tens of seconds.
TORCH_SELECTION_BYTES = 2**28

# A short run that was disturbed says nothing, so the best of three counts; long ones average out.
REPEATED_BELOW_SECONDS = 0.2

Action = Callable[[], object]
Clock = Callable[[], float]
Timings = dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One size at which everything is timed."""

    dimension: int
    rows: int
    columns: int
    k: int


def clock_name(threads: int) -> str:
    """Return which clock `interleave` reads.

    On one thread everything runs in the calling thread, whose processor time leaves out the time
    other processes took; several threads can only be timed by the wall.
    """
    return "thread processor time" if threads == 1 else "wall"


def _seconds(action: Action, clock: Clock) -> float:
    start = clock()
    action()
    return clock() - start


def interleave(actions: dict[str, Action], rounds: int, threads: int) -> Timings:
    """Run all actions `rounds` times in turn, each time the best of some runs; seconds."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    timings: Timings = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            runs = [_seconds(action, clock)]
            if runs[0] < REPEATED_BELOW_SECONDS:
                runs += [_seconds(action, clock) for _ in range(2)]
            timings[name].append(min(runs))
    return timings


@dataclass
class Workspace:
    """The arrays of one point and what is timed on them."""

    point: Point
    threads: int

    def __post_init__(self) -> None:
        p = self.point
        generator = np.random.default_rng(SEED)
        # In torch's memory, as gradients are: it begins at a cache line, NumPy's need not.
        self.torch_values = torch.empty(p.dimension)
        self.values = self.torch_values.numpy()
        generator.standard_normal(dtype=np.float32, out=self.values)
        self.table = torch.zeros(p.rows, p.columns).numpy()
        self.plain_table = torch.zeros(p.rows, p.columns).numpy()
        self.selected = np.empty(p.k, np.int64)
        self.indices = generator.integers(p.dimension, size=p.k)
        self.estimates = np.empty(p.k, np.float32)
        self.baselines = compile_baselines()
        self.torch_sketch = TorchSketch.random(p.rows, p.columns, p.dimension)
        self.torch_indices = torch.from_numpy(self.indices)

    def reads(self) -> dict[str, Action]:
        """Return the ways of reading the vector once."""
        values = (self.values.ctypes.data, self.values.size, self.threads)
        return {
            "read_unrolled": lambda: self.baselines.read_unrolled(*values),
            "read_memcpy": lambda: self.baselines.read_memcpy(*values),
            "read_torch_sum": self.torch_values.sum,
        }

    def operations(self) -> Iterator[tuple[str, dict[str, Action]]]:
        """Yield every kernel with its baselines; encoding first, the others need its table."""
        p, threads, library = self.point, self.threads, self.baselines
        table = (self.table.ctypes.data, p.rows, p.columns, SEED)
        plain = (self.plain_table.ctypes.data, p.rows, p.columns, SEED)
        values = self.values.ctypes.data
        some = (self.indices.ctypes.data, self.estimates.ctypes.data, p.k, threads)
        top = (p.dimension, p.k, self.selected.ctypes.data, threads)
        yield (
            "encode",
            {
                "native": lambda: _native.encode_dense(*table, values, 0, p.dimension, threads),
                "per_coordinate": lambda: library.per_coordinate_encode(
                    *plain, values, p.dimension, threads
                ),
                "vectorised": lambda: library.vectorised_encode(
                    *plain, values, p.dimension, threads
                ),
                "torch_bincount": lambda: self.torch_sketch.encode_bincount(self.torch_values),
                "torch_index_add": lambda: self.torch_sketch.encode_index_add(self.torch_values),
            },
        )
        yield (
            "estimate",
            {
                "native": lambda: _native.estimate(*table, *some),
                "per_coordinate": lambda: library.per_coordinate_estimate(*plain, *some),
                "torch_gather": lambda: self.torch_sketch.estimate(self.torch_indices),
            },
        )
        selection: dict[str, Action] = {
            "native": lambda: _native.heavy_hitters(*table, *top),
            "per_coordinate": lambda: library.per_coordinate_heavy_hitters(*plain, *top),
        }
        if p.dimension * p.rows * 4 <= TORCH_SELECTION_BYTES:
            selection["torch_gather"] = lambda: self.torch_sketch.heavy_hitters(p.k)
        yield "heavy_hitters", selection
        yield (
            "top_k",
            {
                "native": lambda: _native.top_k(
                    values, p.dimension, p.k, self.selected.ctypes.data, threads
                ),
                "torch_topk": lambda: self.torch_values.abs().topk(p.k),
            },
        )


def _fastest(timings: Timings, prefix: str) -> list[float] | None:
    """Return per round the fastest of the baselines whose names start so."""
    found = [seconds for name, seconds in timings.items() if name.startswith(prefix)]
    return [min(each) for each in zip(*found, strict=True)] if found else None


def _median_ratio(above: list[float] | None, below: list[float]) -> float | None:
    """Return the median of the ratios round by round."""
    if above is None:
        return None
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def _row(operation: str, point: Point, timings: Timings) -> dict[str, object]:
    native, read = timings["native"], _fastest(timings, "read_")
    assert read is not None
    return {
        "operation": operation,
        "dimension": point.dimension,
        "rows": point.rows,
        "columns": point.columns,
        "k": point.k,
        "over_read": _median_ratio(native, read),
        "vs_per_coordinate": _median_ratio(_fastest(timings, "per_coordinate"), native),
        "vs_vectorised": _median_ratio(_fastest(timings, "vectorised"), native),
        "vs_torch": _median_ratio(_fastest(timings, "torch_"), native),
        "seconds": {name: statistics.median(times) for name, times in timings.items()},
        "read_gigabytes_per_second": {
            name: 4e-9 * point.dimension / statistics.median(timings[name]) for name in READS
        },
    }


def measure(point: Point, threads: int, rounds: int) -> Iterator[dict[str, object]]:
    """Yield one row per operation at this point: seconds, and ratios as medians over rounds."""
    torch.set_num_threads(threads)
    workspace = Workspace(point, threads)
    for operation, actions in workspace.operations():
        timings = interleave({**workspace.reads(), **actions}, rounds, threads)
        yield _row(operation, point, timings)
