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
