"""Compare the kernels with the reference implementation before anything is timed."""

import numpy as np

from gsdist import _native
from gsdist.sketch import reference

DIMENSION = 100_001
K = 1000


def check_kernels(rows: int, columns: int, threads: int) -> None:
    """Raise SystemExit unless the kernels agree with the reference bit by bit at these sizes."""
    values = np.random.default_rng(0).standard_t(3, DIMENSION).astype(np.float32)
    table = np.zeros((rows, columns), np.float32)
    expected = np.zeros_like(table)
    offset = 2**33 + 17
    cells = (table.ctypes.data, rows, columns, 5)
    for start in (0, offset):
        _native.encode_dense(*cells, values.ctypes.data, start, DIMENSION, threads)
        reference.encode_dense(expected, 5, values, start, threads)
    _demand(table.tobytes() == expected.tobytes(), "encode", rows, columns)

    chosen = np.empty(K, np.int64)
    _native.heavy_hitters(*cells, DIMENSION, K, chosen.ctypes.data, threads)
    best = reference.heavy_hitters(table, 5, DIMENSION, K, threads)
    _demand(np.array_equal(chosen, best), "heavy_hitters", rows, columns)

    estimates, expected_estimates = np.empty((2, K), np.float32)
    _native.estimate(*cells, best.ctypes.data, estimates.ctypes.data, K, threads)
    reference.estimate(table, 5, best, expected_estimates, threads)
    _demand(np.array_equal(estimates, expected_estimates), "estimate", rows, columns)

    _native.top_k(values.ctypes.data, DIMENSION, K, chosen.ctypes.data, threads)
    _demand(np.array_equal(chosen, reference.top_k(values, K, threads)), "top_k", rows, columns)


def _demand(holds: bool, operation: str, rows: int, columns: int) -> None:
    if not holds:
        raise SystemExit(
            f"benchmarks.kernels: {operation} differs from the reference at rows={rows}, "
            f"columns={columns}; nothing was timed"
        )
