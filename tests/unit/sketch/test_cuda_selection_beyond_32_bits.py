"""GPU kernels that select, emulated, where 32 bits do not suffice."""

import math

import numpy as np
import torch

from gsdist.sketch import reference
from tests.emulation.cases import SEED, THREADS, TILE, normals, table_of
from tests.emulation.huge import BlockAt, LastBlocks, blocks_for, ending_with, reserved
from tests.emulation.launcher import EmulatedLauncher
from tests.unit.sketch import oracle

EMULATED = EmulatedLauncher()


def selection_state(threshold=0, k=0, prefix=0):
    """Return the state of a selection whose scan, or ranking, is about to begin."""
    state = torch.zeros(5 + 2048, dtype=torch.int64)
    state[0] = k
    state[3] = threshold << 32 | prefix
    state[4] = 1 << 32 | 1
    return state


def magnitude_bits(values):
    return np.abs(np.asarray(values, np.float32)).view(np.int32)


def bits_of(number):
    return int(np.float32(number).view(np.uint32))


def marked(marks, first_block):
    """Return the coordinates marked from a block on."""
    bits = np.unpackbits(marks[first_block:].numpy().view(np.uint8), bitorder="little")
    return np.flatnonzero(bits) + first_block * 64


def sampled_coordinates(dimension, begin):
    """Return the coordinates of the sample's blocks from the `begin`-th of 4096 on."""
    blocks = -(-dimension // 64)
    firsts = []
    for j in range(begin, 4096):
        start, end = j * blocks // 4096, (j + 1) * blocks // 4096
        firsts.append(start + ((end - start) * (oracle.mix64(j) >> 32) >> 32))
    return (64 * np.array(firsts)[:, None] + np.arange(64)).ravel()


def test_sampling_values():
    dimension = 2**33 + 77
    values, sample = reserved(dimension, torch.float32), torch.full((4096 * 64,), -1).int()
    places = sampled_coordinates(dimension, 4088)
    values[torch.from_numpy(places)] = torch.from_numpy(normals(11, places.size))
    LastBlocks().launch("sample_values", 4096 * 64 // THREADS, (sample, dimension, values))
    assert np.array_equal(sample[-512:], magnitude_bits(normals(11, places.size)))


def test_sampling_estimates():
    dimension, table = 2**36 + 77, table_of(5, 1280)
    sample, expected = torch.full((4096 * 64,), -1).int(), np.empty(512, np.float32)
    arguments = (sample, dimension, torch.from_numpy(table), *table.shape, SEED)
    LastBlocks().launch("sample_estimates", 4096 * 64 // THREADS, arguments)
    reference.estimate(table, SEED, sampled_coordinates(dimension, 4088), expected, 1)
    assert np.array_equal(sample[-512:], magnitude_bits(expected))


def test_counting_digits_of_a_sample():
    sample = torch.from_numpy(magnitude_bits(normals(12, 4096 * 64)))
    state = selection_state()
    arguments = (state, sample, 2**36 + 77, 20)
    EMULATED.launch("count_digits_of_sample", 64, arguments)
    assert np.array_equal(state[5:], np.bincount(sample >> 20, minlength=2048))


def test_finding_values():
    dimension = 2**32 + 77
    values, marks = reserved(dimension, torch.float32), reserved(dimension // 64 + 1, torch.int64)
    values[-100:] = torch.from_numpy(normals(8, 100))
    state = selection_state(threshold=bits_of(0.5), k=5)
    tiles = -(-dimension // TILE)
    LastBlocks().launch("find_values", tiles, (state, marks, values, dimension))
    expected = np.flatnonzero(values[-100:].abs() >= 0.5) + dimension - 100
    assert np.array_equal(marked(marks, dimension // 64 - 10), expected)
    assert state[2] == len(expected)

    assert digits_counted(
        "values", state, marks, dimension, (values,), expected, values[torch.from_numpy(expected)]
    )
    assert chosen_to_fill_up("values", state, marks, dimension, (values,), expected)


def digits_counted(name, state, marks, dimension, source, found, values):
    """Tell whether the highest digits of the marked are counted, where the last block of 64 is looked at."""
    arguments = (state, marks, dimension, 20, *source)
    BlockAt(dimension // 64).launch(f"count_digits_of_{name}", 1024, arguments)
    begin = 64 * (
        dimension // 64 // THREADS * THREADS
    )  # where that thread block's last round begins
    digits = magnitude_bits(values)[found >= begin] >> 20
    return np.array_equal(state[5:], np.bincount(digits, minlength=2048))


def chosen_to_fill_up(name, state, marks, dimension, source, expected):
    """Tell whether the marked and the lowest three others of the last tiles are chosen.

    More are wanted than were marked, so nothing is ranked; others were chosen before, 2^32 of them.
    """
    tiles = -(-dimension // TILE)
    state[4], state[0], state[2] = 0, len(expected) + 3, len(expected)
    counts = reserved(2 * tiles, torch.int64)
    arguments = (state, marks, counts, dimension, *source)
    LastBlocks().launch(f"count_chosen_{name}", tiles, arguments)
    EMULATED.launch("place_tiles", 1, (counts[-4:], 2))
    counts[[-4, -2]] += 2**32
    chosen = reserved(2**32 + 2 * TILE, torch.int64)
    arguments = (state, marks, counts, chosen, dimension, *source)
    LastBlocks().launch(f"write_chosen_{name}", tiles, arguments)
    others = np.setdiff1d(np.arange((tiles - 2) * TILE, dimension), expected)[:3]
    chosen = chosen[2**32 : 2**32 + len(expected) + 3]
    return np.array_equal(chosen, np.sort(np.append(others, expected)))


def test_finding_estimates():
    dimension, table = 2**36 + 77, table_of(5, 1280)
    cells, marks = torch.from_numpy(table), reserved(dimension // 64 + 1, torch.int64)
    state = selection_state(threshold=bits_of(1.0))
    masks = torch.empty(2 * table.size // 64, dtype=torch.int64)
    buckets = table.size // 64
    EMULATED.launch("mask_cells", blocks_for(32 * buckets), (state, cells, masks, buckets))
    tiles = -(-dimension // TILE)
    LastBlocks().launch("find_estimates", tiles, (state, marks, masks, 5, 1280, SEED, dimension))
    first = (tiles - 2) * TILE
    indices, estimates = np.arange(first, dimension), np.empty(dimension - first, np.float32)
    reference.estimate(table, SEED, indices, estimates, 1)
    expected = indices[np.abs(estimates) >= 1]
    assert np.array_equal(marked(marks, first // 64), expected)

    source = (cells, 5, 1280, SEED)
    assert digits_counted(
        "estimates", state, marks, dimension, source, expected, estimates[expected - first]
    )
    assert chosen_to_fill_up("estimates", state, marks, dimension, source, expected)


def test_masks_of_so_many_cells():
    cells = ending_with(torch.from_numpy(normals(13, 128)), 3 * 2**31)
    buckets = cells.numel() // 64
    masks, state = reserved(2 * buckets, torch.int64), selection_state(threshold=bits_of(0.5))
    LastBlocks().launch("mask_cells", blocks_for(32 * buckets), (state, cells, masks, buckets))
    positive, negative = (marked(masks[sign::2][-2:].contiguous(), 0) for sign in (0, 1))
    assert np.array_equal(positive, np.flatnonzero(normals(13, 128) >= 0.5))
    assert np.array_equal(negative, np.flatnonzero(normals(13, 128) <= -0.5))


def test_places_of_tiles_that_hold_so_many():
    counts = np.random.default_rng(14).integers(0, 2**33, (300, 2))
    found = torch.from_numpy(counts.copy())
    EMULATED.launch("place_tiles", 1, (found, 300))
    assert np.array_equal(found, np.cumsum(counts, axis=0) - counts)


def test_picking_a_digit_of_so_high_a_rank():
    state = selection_state(prefix=3)
    bins = torch.zeros(2048, dtype=torch.int64)
    bins[[900, 500, 20]] = torch.tensor([2**33, 2**34 + 1, 2**40])
    state[5:], state[1] = bins, 2**33 + 2**34 + 2
    EMULATED.launch("pick_digit", 1, (state, 10))
    assert state[1] == 1
    assert state[3] == 3 * 1024 + 20
    assert not state[5:].any()


def test_selections_of_so_many():
    dimension, k = 2**40, 2**33
    state = torch.full((5 + 2048,), -1)
    EMULATED.launch("begin_selection", 1, (state, dimension, k))
    expected = k * 4096 * 64 / dimension
    assert state[:2].tolist() == [k, int(expected + 4 * math.sqrt(expected) + 8)]
    assert not state[5:].any()

    for found, again in ((k - 1, 1), (k, 0)):
        state[3] = bits_of(1.0) >> 20  # the two upper digits
        EMULATED.launch("set_threshold", 1, (state,))
        state[2] = found
        EMULATED.launch("lower_threshold", 1, (state,))
        assert state[4] & 0xFFFFFFFF == again
        state[2] = found
        EMULATED.launch("begin_ranking", 1, (state,))
        assert state[4] >> 32 == 1 - again
        assert state[1] == k
