"""Values, sizes and comparisons that tests of emulated kernels share."""

import numpy as np
import torch

from gsdist.sketch import reference

THREADS = 256
TILE = 64 * THREADS
NUMBERS = [torch.float32, torch.float16, torch.bfloat16]
TOP = 2**40
SEED = 2**64 - 7


def normals(seed, size):
    """Normal values with ties, zeros and negative zeros among them."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(size).astype(np.float32)
    rounded = generator.random(size) < 0.5
    values[rounded] = np.round(values[rounded])
    return values


def same_bits(a, b):
    return np.array_equal(np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32))


def table_of(rows, columns, seed=3):
    return normals(seed, rows * columns).reshape(rows, columns)


def encoded(table, values, offset):
    expected = table.copy()
    reference.encode_dense(expected, SEED, values, offset, 1)
    return expected


def nearly_tied(size):
    """Return values of which a fortieth is 1 and the rest so small that sums round by their order."""
    values = 1e-7 * normals(16, size)
    values[::40] = 1
    return values


def differ_within_rounding(chosen, table, expected_table, seed, dimension):
    """Tell whether a selection is that of `expected_table` but for what the tables' difference decides.

    No estimate, and so no threshold either, moves by more than the cell that differs most.
    """
    count = len(chosen)
    expected = reference.heavy_hitters(expected_table, seed, dimension, count, 1)
    estimates = np.empty(dimension, np.float32)
    reference.estimate(expected_table, seed, np.arange(dimension), estimates, 1)
    magnitudes = np.abs(estimates)
    threshold = np.sort(magnitudes)[-count]
    doubtful = magnitudes[np.setxor1d(chosen, expected)]
    return bool(np.all(np.abs(doubtful - threshold) <= 2 * np.abs(table - expected_table).max()))
