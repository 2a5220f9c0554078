"""Restate sketch format 1 in Python's unbounded integers, apart from the package's own code."""

from fractions import Fraction
from statistics import median

import numpy as np

TWO_64 = 1 << 64


def mix64(word):
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % TWO_64
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % TWO_64
    return word ^ (word >> 31)


def words(seed, row, block):
    """Return row key, sign word and position word of one block."""
    golden = 0x9E3779B97F4A7C15
    key = mix64((seed + golden * (row + 1)) % TWO_64)
    signs = mix64((key + golden * block) % TWO_64)
    position = (signs ^ (signs >> 32)) * 0xD6E8FEB86659FD93 % TWO_64
    return key, signs, position


def place(seed, row, index, columns):
    """Return the cell and the sign of one coordinate in one row."""
    block, lane = divmod(index, 64)
    _, signs, position = words(seed, row, block)
    bucket_block = (position // 2**32) * (columns // 64) // 2**32
    swap = position // 2**26 % 64
    return bucket_block * 64 + (lane ^ swap), -1 if signs // 2**lane % 2 else 1


def table(rows, columns, seed, entries):
    """Sketch (index, value) pairs, each addition rounded to float32."""
    cells = np.zeros((rows, columns), np.float32)
    for row in range(rows):
        for index, value in entries:
            cell, sign = place(seed, row, index, columns)
            cells[row, cell] += np.float32(sign) * np.float32(value)
    return cells


def estimate(cells, seed, index):
    """Return the median of the rows as an exact fraction."""
    rows, columns = cells.shape
    places = (place(seed, row, index, columns) for row in range(rows))
    return median(
        sign * Fraction(float(cells[row, cell])) for row, (cell, sign) in enumerate(places)
    )


def block_places(seeds, row, blocks, columns):
    """Return sign words, bucket blocks and lane swaps for arrays of seeds and blocks (NumPy)."""

    def mix(word):
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return word ^ (word >> np.uint64(31))

    seeds, blocks = np.asarray(seeds, np.uint64), np.asarray(blocks, np.uint64)
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        signs = mix(mix(seeds + golden * np.uint64(row + 1)) + golden * blocks)
        position = (signs ^ (signs >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    bucket = ((position >> np.uint64(32)) * np.uint64(columns // 64)) >> np.uint64(32)
    return signs, bucket.astype(np.int64), ((position >> np.uint64(26)) & np.uint64(63)).astype(int)


def lane_signs(words_):
    """Return signs (+1 or -1, int8) of all 64 lanes, shape (blocks, 64)."""
    bits = np.unpackbits(
        np.asarray(words_, "<u8").view(np.uint8).reshape(-1, 8), axis=1, bitorder="little"
    )
    return 1 - 2 * bits.astype(np.int8)
