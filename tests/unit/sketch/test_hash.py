"""Where coordinates go: the format itself, and that it hashes well.

The statistical tests use fixed seeds, so they always give the same verdict; the bounds are five to
six standard deviations of what an ideal hash function would show.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsdist.sketch.reference import block_words
from tests.unit.sketch import oracle

SEEDS = st.integers(0, 2**64 - 1)
BLOCKS = st.integers(0, 2**34 - 1)


@settings(deadline=None, max_examples=300)
@given(SEEDS, st.integers(0, 14), BLOCKS, st.integers(1, 2**32 - 1))
def test_reference_hash_equals_the_oracle(seed, row, block, bucket_blocks):
    columns = bucket_blocks * 64
    arguments = (np.uint64(value) for value in (seed, row, block, columns))
    signs, first, swap = (int(word) for word in block_words(*arguments))
    for lane in (0, 1, 31, 32, 63):
        cell, sign = oracle.place(seed, row, block * 64 + lane, columns)
        assert cell == first + (lane ^ swap) < columns
        assert sign == (-1 if signs >> lane & 1 else 1)


@settings(deadline=None, max_examples=50)
@given(SEEDS, st.integers(0, 14), BLOCKS, st.integers(1, 2**32 - 1))
def test_vectorised_oracle_equals_the_oracle(seed, row, block, bucket_blocks):
    columns = bucket_blocks * 64
    signs, bucket, swap = oracle.block_places([seed], row, [block], columns)
    signs_per_lane = oracle.lane_signs(signs)[0]
    for lane in range(64):
        cell = int(bucket[0]) * 64 + (lane ^ int(swap[0]))
        expected = oracle.place(seed, row, block * 64 + lane, columns)
        assert (cell, signs_per_lane[lane]) == expected


@pytest.mark.parametrize("columns", [64, 192, 64 * 4099])
def test_both_backends_place_single_coordinates_like_the_oracle(kernels, rng, columns):
    for index in [0, 63, 64, 2**31, 2**40 - 1, *rng.integers(0, 2**40, 5).tolist()]:
        seed = int(rng.integers(0, 2**64, dtype=np.uint64))
        table = np.zeros((15, columns), np.float32)
        kernels.encode_sparse(table, seed, np.array([index]), np.ones(1, np.float32), 1)
        rows, cells = np.nonzero(table)
        assert rows.tolist() == list(range(15))
        found = [(int(cell), int(table[row, cell])) for row, cell in zip(rows, cells, strict=True)]
        assert found == [oracle.place(seed, row, index, columns) for row in range(15)]


def within(count, trials, probability, deviations=5.0):
    """Tell whether a count is what a binomial distribution allows."""
    spread = math.sqrt(trials * probability * (1 - probability))
    return abs(count - trials * probability) <= deviations * spread


def test_coordinates_of_one_block_never_collide(kernels):
    """64 ones in a block must fill 64 cells with +-1, in every row and for any seed."""
    for seed in range(50):
        table = np.zeros((15, 256), np.float32)
        kernels.encode_dense(table, seed, np.ones(64, np.float32), 64 * seed, 1)
        assert (np.abs(table).sum(axis=1) == 64).all()
        assert (np.count_nonzero(table, axis=1) == 64).all()


@pytest.mark.parametrize("columns", [64, 512, 64 * 37])
@pytest.mark.parametrize("distance", [1, 2, 64, 2**20, 2**33])
def test_coordinates_of_different_blocks_collide_with_probability_one_over_columns(
    columns, distance
):
    trials = 400_000
    rng = np.random.default_rng(distance)
    seeds = np.repeat(rng.integers(0, 2**64, 400, dtype=np.uint64), 1000)
    blocks = np.tile(np.arange(1000), 400)
    lanes, other_lanes = rng.integers(0, 64, (2, trials))
    for row in (0, 14):
        _, bucket, swap = oracle.block_places(seeds, row, blocks, columns)
        _, other, other_swap = oracle.block_places(seeds, row, blocks + distance, columns)
        collide = (bucket == other) & (lanes ^ swap == other_lanes ^ other_swap)
        assert within(int(collide.sum()), trials, 1 / columns)


def test_signs_are_balanced_and_uncorrelated_inside_a_block_between_blocks_and_rows():
    blocks = np.arange(100_000)
    first, second = (
        oracle.lane_signs(oracle.block_places(7, row, blocks, 512)[0]).astype(np.float32)
        for row in (0, 1)
    )
    limit = 6 * math.sqrt(len(blocks))
    assert np.abs(first.sum(axis=0)).max() < limit
    inside = first.T @ first
    np.fill_diagonal(inside, 0)
    assert np.abs(inside).max() < limit
    assert np.abs(first[:-1].T @ first[1:]).max() < limit  # neighbouring blocks
    assert np.abs(first[:-64].T @ first[64:]).max() < limit
    assert np.abs(first.T @ second).max() < limit  # rows


def test_signs_do_not_depend_on_the_cell():
    """Sums of signs per (bucket block, lane swap, lane): position and signs share one hash word."""
    blocks = np.arange(1_000_000)
    for seed in (0, 1, 2**63):
        signs, bucket, swap = oracle.block_places(seed, 0, blocks, 8 * 64)
        places = bucket * 64 + swap
        counts = np.bincount(places, minlength=512)
        order = np.argsort(places, kind="stable")
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        sums = np.add.reduceat(oracle.lane_signs(signs)[order].astype(np.int32), starts, axis=0)
        assert (np.abs(sums) < 6 * np.sqrt(counts)[:, None]).all()  # 32,768 sums


def test_sign_products_of_colliding_coordinates_average_to_zero():
    """Given that two coordinates share a cell, their signs must be independent."""
    pairs = 1_000_000
    blocks = np.arange(pairs)
    for seed, distance in ((0, 1), (1, 2), (2, 4096)):
        signs, bucket, swap = oracle.block_places(seed, 2, blocks, 512)
        other, other_bucket, other_swap = oracle.block_places(seed, 2, blocks + distance, 512)
        meet = bucket == other_bucket
        collisions = int(meet.sum())
        assert within(collisions, pairs, 1 / 8)
        mine, theirs = oracle.lane_signs(signs[meet]), oracle.lane_signs(other[meet])
        partners = np.arange(64) ^ (swap ^ other_swap)[meet][:, None]
        products = mine * np.take_along_axis(theirs, partners, axis=1)
        assert np.abs(products.sum(axis=0, dtype=np.int64)).max() < 5 * math.sqrt(collisions)
        total = abs(int(products.sum(dtype=np.int64)))
        assert total < 5 * math.sqrt(64 * collisions)


def test_rows_hash_independently():
    """Counts of (bucket block in one row, bucket block in another) against equal counts."""
    blocks = np.arange(500_000)
    places = [oracle.block_places(3, row, blocks, 16 * 64) for row in range(15)]
    for row in range(14):
        for what in (1, 2):  # bucket blocks, then lane swaps
            joint = places[row][what] * 64 + places[row + 1][what]
            side = 16 if what == 1 else 64
            grid = np.bincount(joint, minlength=64 * 64).reshape(64, 64)[:side, :side]
            expected = len(blocks) / side**2
            chi_square = float(((grid - expected) ** 2 / expected).sum())
            freedom = side**2 - 1
            assert abs(chi_square - freedom) < 6 * math.sqrt(2 * freedom)


def test_one_bit_of_the_seed_changes_everything():
    blocks = np.arange(100_000)
    signs, bucket, _ = oracle.block_places(0, 0, blocks, 8 * 64)
    for bit in (0, 31, 63):
        other, other_bucket, _ = oracle.block_places(1 << bit, 0, blocks, 8 * 64)
        assert within(int(np.bitwise_count(signs ^ other).sum()), 64 * len(blocks), 0.5)
        assert within(int((bucket == other_bucket).sum()), len(blocks), 1 / 8)
