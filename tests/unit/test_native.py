"""The native kernels against a slow second implementation of the format and against NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

native = pytest.importorskip("gsdist._native")

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

LEVELS: list[str] = native.build_info()["simd_levels"]
ALL_ROWS = range(1, 16, 2)
SIZES = st.sampled_from([0, 1, 2, 63, 64, 65, 127, 128, 1000, 1024, 1055, 5000])
MASK64 = 2**64 - 1
TOP = 2**40


# The format once more, on Python's unbounded integers.
def slow_mix64(z: int) -> int:
    z ^= z >> 30
    z = z * 0xBF58476D1CE4E5B9 & MASK64
    z ^= z >> 27
    z = z * 0x94D049BB133111EB & MASK64
    return z ^ (z >> 31)


def slow_cell(seed: int, row: int, index: int, columns: int) -> tuple[int, float]:
    golden = 0x9E3779B97F4A7C15
    block, lane = divmod(index, 64)
    key = slow_mix64((seed + golden * (row + 1)) & MASK64)
    signs = slow_mix64((key + golden * block) & MASK64)
    position = (signs ^ (signs >> 32)) * 0xD6E8FEB86659FD93 & MASK64
    bucket = (position >> 32) * (columns // 64) >> 32
    sign = -1.0 if signs >> lane & 1 else 1.0
    return bucket * 64 + (lane ^ (position >> 26 & 63)), sign


def slow_encode(
    rows: int, columns: int, seed: int, indices: Indices, values: Floats, table: Floats
) -> Floats:
    table = table.copy()
    for row in range(rows):
        for index, value in zip(indices.tolist(), values, strict=True):
            cell, sign = slow_cell(seed, row, index, columns)
            table[row, cell] += np.float32(sign) * value
    return table


def slow_estimate(table: Floats, seed: int, indices: Indices) -> Floats:
    rows, columns = table.shape
    estimates = np.empty((rows, len(indices)), np.float32)
    for row in range(rows):
        for place, index in enumerate(indices.tolist()):
            cell, sign = slow_cell(seed, row, index, columns)
            estimates[row, place] = np.float32(sign) * table[row, cell]
    return np.sort(estimates, axis=0)[rows // 2]


def slow_top_k(values: Floats, k: int) -> Indices:
    by_magnitude = np.argsort(-np.abs(values), kind="stable")
    return np.sort(by_magnitude[:k]).astype(np.int64)


# The kernels with arrays instead of addresses.
def address(array: NDArray[np.generic]) -> int:
    assert array.flags.c_contiguous
    return array.ctypes.data


def encode(table: Floats, seed: int, values: Floats, offset: int, threads: int = 1) -> Floats:
    table = table.copy()
    native.encode_dense(
        address(table), *table.shape, seed, address(values), offset, len(values), threads
    )
    return table


def encode_sparse(
    table: Floats, seed: int, indices: Indices, values: Floats, threads: int = 1
) -> Floats:
    table = table.copy()
    native.encode_sparse(
        address(table), *table.shape, seed, address(indices), address(values), len(values), threads
    )
    return table


def estimate(table: Floats, seed: int, indices: Indices, threads: int = 1) -> Floats:
    out = np.full(len(indices), np.nan, np.float32)
    native.estimate(
        address(table), *table.shape, seed, address(indices), address(out), len(indices), threads
    )
    return out


def heavy_hitters(table: Floats, seed: int, dimension: int, k: int, threads: int = 1) -> Indices:
    out = np.full(k, -1, np.int64)
    native.heavy_hitters(address(table), *table.shape, seed, dimension, k, address(out), threads)
    return out


def top_k(values: Floats, k: int, threads: int = 1) -> Indices:
    out = np.full(k, -1, np.int64)
    native.top_k(address(values), len(values), k, address(out), threads)
    return out


@pytest.fixture(autouse=True)
def restore_simd_level() -> Iterator[None]:
    before = native.build_info()["simd_level"]
    yield
    native.use_simd_level(before)


def on_all_levels(
    compute: Callable[[int], NDArray[np.generic]],
) -> NDArray[np.generic]:
    """Return what ``compute(threads)`` gives, the same bits at every level and thread count."""
    results = []
    for level in LEVELS:
        native.use_simd_level(level)
        results += [compute(threads) for threads in (1, 2, 5)]
    for result in results:
        assert result.tobytes() == results[0].tobytes()
    return results[0]


def random_values(seed: int, size: int) -> Floats:
    """Normal values with ties, zeros and negative zeros among them."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(size).astype(np.float32)
    rounded = generator.random(size) < 0.5
    values[rounded] = np.round(values[rounded])
    return values


def test_build_info_names_the_level_in_use() -> None:
    for level in LEVELS:
        native.use_simd_level(level)
        assert native.build_info()["simd_level"] == level
    assert native.build_info()["format_version"] == 1
    with pytest.raises(ValueError, match="portable"):
        native.use_simd_level("abacus")


@pytest.mark.parametrize("rows", ALL_ROWS)
@settings(deadline=None, max_examples=8)
@given(
    size=SIZES,
    offset=st.sampled_from([0, 1, 63, 64, 100, 2**32 - 5, TOP - 5000]),
    column_blocks=st.sampled_from([1, 3, 16]),
    seed=st.integers(0, MASK64),
)
def test_dense_encoding_follows_the_format(
    rows: int, size: int, offset: int, column_blocks: int, seed: int
) -> None:
    size = min(size, 200 if rows > 1 else size)  # the slow encoder is slow
    table = random_values(1, rows * column_blocks * 64).reshape(rows, -1)
    values = random_values(2, size)
    got = on_all_levels(lambda threads: encode(table, seed, values, offset, threads))
    indices = np.arange(offset, offset + size, dtype=np.int64)
    expected = slow_encode(rows, column_blocks * 64, seed, indices, values, table)
    assert got.tobytes() == expected.tobytes()


@settings(deadline=None, max_examples=30)
@given(size=SIZES, offset=st.integers(0, TOP - 5000), rows=st.sampled_from(ALL_ROWS))
def test_dense_and_sparse_encoding_agree(size: int, offset: int, rows: int) -> None:
    table = np.zeros((rows, 640), np.float32)
    values = random_values(3, size)
    indices = np.arange(offset, offset + size, dtype=np.int64)
    dense = on_all_levels(lambda threads: encode(table, 7, values, offset, threads))
    sparse = on_all_levels(lambda threads: encode_sparse(table, 7, indices, values, threads))
    assert dense.tobytes() == sparse.tobytes()


@settings(deadline=None, max_examples=20)
@given(cuts=st.lists(st.integers(0, 3000), max_size=4), offset=st.integers(0, TOP - 3000))
def test_slices_add_up_to_the_whole_bit_by_bit(cuts: list[int], offset: int) -> None:
    values = random_values(4, 3000)
    table = np.zeros((5, 256), np.float32)
    edges = [0, *sorted(cuts), 3000]
    parts = table
    for begin, end in pairwise(edges):
        parts = encode(parts, 9, values[begin:end].copy(), offset + begin)
    assert parts.tobytes() == encode(table, 9, values, offset).tobytes()


def test_misaligned_arrays_give_the_same_bits() -> None:
    values = random_values(5, 4097)
    storage = np.zeros(3 * 640 + 1, np.float32)
    shifted = storage[1:].reshape(3, 640)  # 4 bytes off any vector's alignment
    native.encode_dense(address(shifted), 3, 640, 1, address(values[1:]), 0, 4096, 1)
    aligned = encode(np.zeros((3, 640), np.float32), 1, values[1:].copy(), 0)
    assert shifted.tobytes() == aligned.tobytes()


@pytest.mark.parametrize("rows", ALL_ROWS)
def test_estimate_is_the_median_of_the_signed_cells(rows: int) -> None:
    table = random_values(rows, rows * 192).reshape(rows, 192)
    near_the_top = np.arange(TOP - 100, TOP, dtype=np.int64)
    indices = np.concatenate([np.arange(130, dtype=np.int64), near_the_top])
    got = on_all_levels(lambda threads: estimate(table, 11, indices, threads))
    np.testing.assert_array_equal(got, slow_estimate(table, 11, indices))


@pytest.mark.parametrize("rows", ALL_ROWS)
@settings(deadline=None, max_examples=10)
@given(
    dimension=st.sampled_from([1, 63, 64, 65, 1000, 4096, 6001]),
    share=st.floats(0, 1),
    filled=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    seed=st.integers(0, MASK64),
)
def test_heavy_hitters_are_the_top_k_of_all_estimates(
    rows: int, dimension: int, share: float, filled: float, seed: int
) -> None:
    k = max(1, math.ceil(share * dimension))
    table = random_values(seed % 1000, rows * 320).reshape(rows, 320)
    table[:, np.random.default_rng(seed % 1000).random(320) >= filled] = 0
    every = np.arange(dimension, dtype=np.int64)
    expected = slow_top_k(estimate(table, seed, every), k)
    got = on_all_levels(lambda threads: heavy_hitters(table, seed, dimension, k, threads))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("k", [1, 100, 5000, 300_000, 524_288 + 30])
@pytest.mark.parametrize("ties", [False, True])
def test_heavy_hitters_of_a_sampled_scan(k: int, ties: bool) -> None:
    """Above 512 blocks the threshold comes from a sample, which may be wrong at first."""
    dimension = 524_288 + 37
    values = np.random.default_rng(12).standard_t(2, dimension).astype(np.float32)
    if ties:
        values = np.round(values)
    table = encode(np.zeros((3, 8192), np.float32), 5, values, 0)
    estimates = estimate(table, 5, np.arange(dimension, dtype=np.int64))
    got = on_all_levels(lambda threads: heavy_hitters(table, 5, dimension, k, threads))
    np.testing.assert_array_equal(got, slow_top_k(estimates, k))


def test_heavy_hitters_that_sit_in_one_place_only() -> None:
    """The sample misses them, so that the first threshold is far too low or too high."""
    dimension = 1 << 20
    values = np.zeros(dimension, np.float32)
    values[777_000:777_640] = np.arange(1, 641)
    table = encode(np.zeros((5, 65_536), np.float32), 3, values, 0)
    estimates = estimate(table, 3, np.arange(dimension, dtype=np.int64))
    for k in (10, 640, 20_000):
        np.testing.assert_array_equal(
            heavy_hitters(table, 3, dimension, k), slow_top_k(estimates, k)
        )


def test_constant_table_yields_the_lowest_indices() -> None:
    """Every coordinate ties; far more reach the threshold than are kept."""
    table = np.ones((1, 64), np.float32)
    got = on_all_levels(lambda threads: heavy_hitters(table, 0, 1 << 20, 70, threads))
    np.testing.assert_array_equal(got, np.arange(70))


def test_heavy_hitters_of_an_empty_table_in_a_huge_dimension() -> None:
    got = heavy_hitters(np.zeros((5, 64), np.float32), 0, 1 << 26, 5)
    np.testing.assert_array_equal(got, np.arange(5))


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(
        st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-45, -1e-45, 3e38, 0.5]),
        min_size=1,
        max_size=300,
    ),
    share=st.floats(0, 1),
)
@example(values=[0.0] * 130, share=0.5)
@example(values=[1.0, -1.0] * 100, share=1.0)
def test_top_k_with_ties_and_zeros(values: list[float], share: float) -> None:
    array = np.array(values, np.float32)
    k = max(1, math.ceil(share * len(array)))
    got = on_all_levels(lambda threads: top_k(array, k, threads))
    np.testing.assert_array_equal(got, slow_top_k(array, k))


@pytest.mark.parametrize("k", [1, 2, 1000, 200_000, 600_000, 600_001])
def test_top_k_of_a_sampled_scan(k: int) -> None:
    values = random_values(13, 600_001)
    values[::7] *= 1e-30
    got = on_all_levels(lambda threads: top_k(values, k, threads))
    np.testing.assert_array_equal(got, slow_top_k(values, k))


def test_top_k_does_not_read_beyond_the_end() -> None:
    storage = np.full(1000, 9.0, np.float32)
    storage[:70] = np.arange(70)
    got = on_all_levels(lambda threads: top_k(storage[:70], 3, threads))
    np.testing.assert_array_equal(got, [67, 68, 69])


def run_compensate(
    residual: Floats | None,
    momentum: Floats | None,
    gradient: Floats,
    nesterov: bool,
    threads: int,
) -> tuple[Floats, bool]:
    out = np.full(len(gradient), np.nan, np.float32)
    finite = native.compensate(
        address(out),
        0 if residual is None else address(residual),
        0 if momentum is None else address(momentum),
        address(gradient),
        0.125,
        0.9,
        nesterov,
        len(gradient),
        threads,
    )
    return out, finite


@settings(deadline=None, max_examples=40)
@given(
    size=SIZES,
    with_residual=st.booleans(),
    with_momentum=st.booleans(),
    nesterov=st.booleans(),
)
def test_compensate(size: int, with_residual: bool, with_momentum: bool, nesterov: bool) -> None:
    gradient, residual, momentum = (random_values(seed, size) for seed in (20, 21, 22))
    inputs = [a.copy() for a in (gradient, residual, momentum)]
    got = on_all_levels(
        lambda threads: run_compensate(
            residual if with_residual else None,
            momentum if with_momentum else None,
            gradient,
            nesterov,
            threads,
        )[0]
    )
    scale, factor = np.float32(0.125), np.float32(0.9)
    update = scale * gradient
    if with_momentum:
        new_momentum = factor * momentum + update
        update = update + factor * new_momentum if nesterov else new_momentum
    expected = (residual if with_residual else np.float32(0)) + update
    assert got.tobytes() == expected.astype(np.float32).tobytes()
    for array, before in zip((gradient, residual, momentum), inputs, strict=True):
        assert array.tobytes() == before.tobytes()


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("place", [0, 63, 500, 999])
def test_compensate_reports_values_that_are_not_finite(bad: float, place: int) -> None:
    gradient = random_values(30, 1000)
    residual = random_values(31, 1000)
    for threads in (1, 3):
        assert run_compensate(residual, None, gradient, False, threads)[1]
    residual[place] = bad
    for threads in (1, 3):
        assert not run_compensate(residual, None, gradient, False, threads)[1]


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_selection_terminates_on_values_that_are_not_finite(bad: float) -> None:
    """The result is only required to be the same everywhere."""
    table = random_values(40, 5 * 640).reshape(5, 640)
    table[:, 100:400] = bad
    got = on_all_levels(lambda threads: heavy_hitters(table, 2, 400_000, 1000, threads))
    assert len(np.unique(got)) == 1000
    assert got.min() >= 0
    assert got.max() < 400_000
