"""Compare the kernels with the reference implementation before anything is timed."""

import numpy as np
import torch

from gsdist import _native
from gsdist.sketch import reference
from gsdist.sketch.cuda_kernels import CudaKernels

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


def check_device_kernels(
    kernels: CudaKernels, device: torch.device, rows: int, columns: int
) -> None:
    """Raise SystemExit unless a GPU's kernels agree with the reference at these sizes.

    Bit by bit, but for the encoding that adds in any order.
    """
    values = np.random.default_rng(0).standard_t(3, DIMENSION).astype(np.float32)
    expected = np.zeros((rows, columns), np.float32)
    table, loose = torch.zeros(2, rows, columns, device=device)
    vector = torch.from_numpy(values).to(device)
    for start in (0, 2**33 + 17):
        order = kernels.ordered_blocks(table, 5, start, DIMENSION)
        kernels.encode_dense_ordered(table, 5, vector, start, order)
        kernels.encode_dense(loose, 5, vector, start)
        reference.encode_dense(expected, 5, values, start, 1)
    _demand(table.cpu().numpy().tobytes() == expected.tobytes(), "ordered encode", rows, columns)
    close = np.allclose(loose.cpu().numpy(), expected, rtol=1e-4, atol=1e-4)
    _demand(close, "encode", rows, columns)

    best = reference.heavy_hitters(expected, 5, DIMENSION, K, 1)
    chosen = kernels.heavy_hitters(table, 5, DIMENSION, K)
    _demand(np.array_equal(chosen.cpu().numpy(), best), "heavy_hitters", rows, columns)

    estimates, expected_estimates = torch.empty(K, device=device), np.empty(K, np.float32)
    kernels.estimate(table, 5, chosen, estimates)
    reference.estimate(expected, 5, best, expected_estimates, 1)
    same = np.array_equal(estimates.cpu().numpy(), expected_estimates)
    _demand(same, "estimate", rows, columns)

    chosen = kernels.top_k(vector, K)
    best = reference.top_k(values, K, 1)
    _demand(np.array_equal(chosen.cpu().numpy(), best), "top_k", rows, columns)


def _demand(holds: bool, operation: str, rows: int, columns: int) -> None:
    if not holds:
        raise SystemExit(
            f"benchmarks.kernels: {operation} differs from the reference at rows={rows}, "
            f"columns={columns}; nothing was timed"
        )
