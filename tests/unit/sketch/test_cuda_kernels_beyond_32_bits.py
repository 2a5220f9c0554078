"""Every GPU kernel, emulated, where counts and places need more than 32 bits.

Arrays exist as addresses only, and the thread blocks at their ends run.
"""

import math
import mmap

import numpy as np
import pytest
import torch

from gsdist.sketch import reference
from gsdist.sketch.cuda_kernels import BlockOrder, CudaKernels
from tests.emulation.cases import (
    NUMBERS,
    SEED,
    THREADS,
    TILE,
    TOP,
    encoded,
    normals,
    same_bits,
    table_of,
)
from tests.emulation.launcher import EmulatedLauncher
from tests.unit.sketch import oracle

MANY = 2**31 + 77
NO_CELLS = np.zeros((3, 320), np.float32)
EMULATED = EmulatedLauncher()


@pytest.fixture
def in_order():
    return CudaKernels(EMULATED)


def reserved(count, dtype):
    """Return a tensor of zeros whose memory the system hands out page by page, where it is used."""
    without_reserve = getattr(mmap, "MAP_NORESERVE", 0x4000)  # has a name from Python 3.13 on
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | without_reserve
    memory = mmap.mmap(-1, count * dtype.itemsize, flags=flags)
    return torch.frombuffer(memory, dtype=dtype)


def ending_with(tail, count):
    """Return reserved zeros that end with `tail`."""
    values = reserved(count, tail.dtype)
    values[-len(tail) :] = tail
    return values


def blocks_for(items):
    return -(-items // THREADS)


class LastBlocks(EmulatedLauncher):
    """Run only the last two thread blocks of every kernel."""

    def launch(self, kernel, thread_blocks, arguments):
        self.launch_part(kernel, thread_blocks, thread_blocks - 2, thread_blocks, arguments)


class BlockAt(EmulatedLauncher):
    """Run only the thread block that, going round, comes to an item."""

    def __init__(self, item):
        super().__init__()
        self._item = item

    def launch(self, kernel, thread_blocks, arguments):
        block = self._item // THREADS % thread_blocks
        self.launch_part(kernel, thread_blocks, block, block + 1, arguments)


# ---- encoding and estimates ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("count", [MANY, 2**34 + 77])
def test_dense_encoding(count, number):
    tail, cells = torch.from_numpy(normals(6, 1000)).to(number), torch.zeros(3, 320)
    CudaKernels(LastBlocks()).encode_dense(cells, SEED, ending_with(tail, count), 5)
    assert same_bits(cells, encoded(NO_CELLS, tail.float().numpy(), 5 + count - 1000))


@pytest.mark.parametrize("number", NUMBERS)
def test_ordered_dense_encoding(in_order, number):
    """Only the blocks of the last values are listed; the others hold zeros."""
    tail, cells = torch.from_numpy(normals(6, 1000)).to(number), torch.zeros(3, 320)
    first = (5 + MANY - 1000) // 64
    there = in_order.ordered_blocks(cells, SEED, 64 * first, 5 + MANY - 64 * first)
    order = BlockOrder(there.order + first, there.starts)
    in_order.encode_dense_ordered(cells, SEED, ending_with(tail, MANY), 5, order)
    assert same_bits(cells, encoded(NO_CELLS, tail.float().numpy(), 5 + MANY - 1000))


def test_locating_blocks():
    blocks, first = MANY, 2**33
    buckets = reserved(3 * blocks, torch.int64).view(3, blocks)
    arguments = (buckets, 3, 320, SEED, first, blocks)
    LastBlocks().launch("locate_blocks", blocks_for(blocks), arguments)
    for row in range(3):
        _, expected, _ = oracle.block_places(
            SEED, row, np.arange(blocks - 200, blocks) + first, 320
        )
        assert np.array_equal(buckets[row, -200:], expected)


def sparse_tail(number):
    values = torch.from_numpy(normals(7, 300)).to(number)
    return torch.from_numpy(np.random.default_rng(7).integers(0, TOP, 300)), values


@pytest.mark.parametrize("number", NUMBERS)
def test_sparse_encoding(number):
    indices, values = sparse_tail(number)
    cells, expected = torch.zeros(3, 320), NO_CELLS.copy()
    many = ending_with(indices, MANY), ending_with(values, MANY)
    CudaKernels(LastBlocks()).encode_sparse(cells, SEED, *many)
    reference.encode_sparse(expected, SEED, indices.numpy(), values.float().numpy(), 1)
    assert same_bits(cells, expected)


@pytest.mark.parametrize("number", NUMBERS)
def test_locating_entries(number):
    indices, values = sparse_tail(number)
    cells = reserved(3 * MANY, torch.int64).view(3, MANY)
    signed = reserved(3 * MANY, torch.float32).view(3, MANY)
    many = ending_with(indices, MANY), ending_with(values, MANY)
    arguments = (cells, signed, 3, 320, SEED, *many, MANY)
    LastBlocks().launch(f"locate_entries_{str(number)[6:]}", blocks_for(MANY), arguments)
    for row in range(3):
        for i in range(300):
            cell, sign = oracle.place(SEED, row, int(indices[i]), 320)
            assert cells[row, i - 300] == 320 * row + cell
            assert signed[row, i - 300] == sign * values[i].float()


def test_ordered_sums_of_sorted_entries():
    cells, signed = torch.zeros(50), torch.from_numpy(normals(8, 300))
    sorted_cells = torch.from_numpy(np.sort(np.random.default_rng(8).integers(1, 50, 300)))
    places = torch.from_numpy(np.random.default_rng(9).permutation(300)) + MANY - 300
    arguments = (
        cells,
        ending_with(sorted_cells, MANY),
        ending_with(places, MANY),
        ending_with(signed, MANY),
        MANY,
    )
    LastBlocks().launch("encode_sparse_ordered", blocks_for(MANY), arguments)
    expected = np.zeros(50, np.float32)
    np.add.at(expected, sorted_cells, signed[places - (MANY - 300)])
    assert same_bits(cells, expected)


def test_estimates():
    table, (indices, _) = table_of(5, 320), sparse_tail(torch.float32)
    out, expected = reserved(MANY, torch.float32), np.empty(300, np.float32)
    many = ending_with(indices, MANY)
    CudaKernels(LastBlocks()).estimate(torch.from_numpy(table), SEED, many, out)
    reference.estimate(table, SEED, indices.numpy(), expected, 1)
    assert np.array_equal(out[-300:], expected)


def test_tables_of_more_cells_than_32_bits_count(in_order):
    rows, columns = 3, 2**31
    indices, values = sparse_tail(torch.float32)
    cells, other = (reserved(rows * columns, torch.float32).view(rows, columns) for _ in range(2))
    in_order.encode_sparse(cells, SEED, indices, values)
    in_order.encode_sparse_ordered(other, SEED, indices, values)
    for found in (cells, other):
        expected, out = np.empty(300, np.float32), torch.empty(300)
        reference.estimate(found.numpy(), SEED, indices.numpy(), expected, 1)
        in_order.estimate(found, SEED, indices, out)
        assert np.array_equal(out, expected)
        assert np.array_equal(out, values)


def test_dense_encoding_in_so_large_a_table(in_order):
    cells = reserved(3 * 2**31, torch.float32).view(3, 2**31)
    values, out = torch.from_numpy(normals(10, 3000)), torch.empty(3000)
    in_order.encode_dense(cells, SEED, values, TOP)
    in_order.estimate(cells, SEED, torch.arange(TOP, TOP + 3000), out)
    assert np.array_equal(out, values)


# ---- selection -------------------------------------------------------------------------------------------


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


def test_finding_estimates(in_order):
    dimension, table = 2**36 + 77, table_of(5, 1280)
    cells, marks = torch.from_numpy(table), reserved(dimension // 64 + 1, torch.int64)
    state = selection_state(threshold=bits_of(1.0))
    masks = torch.empty(2 * table.size // 64, dtype=torch.int64)
    buckets = table.size // 64
    in_order._launch("mask_cells", blocks_for(32 * buckets), state, cells, masks, buckets)
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


# ---- every number once -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", NUMBERS)
def test_compensate(number):
    gradient = torch.from_numpy(normals(20, 77)).to(number)
    residual, momentum = (torch.from_numpy(normals(seed, 77)) for seed in (21, 22))
    out, expected = reserved(MANY, torch.float32), np.empty(77, np.float32)
    many = (ending_with(residual, MANY), ending_with(momentum, MANY), ending_with(gradient, MANY))
    finite = CudaKernels(BlockAt(MANY - 1)).compensate(out, *many, 0.3, 0.9, True)
    wide = gradient.float().numpy()
    reference.compensate(expected, residual.numpy(), momentum.numpy(), wide, 0.3, 0.9, True, 1)
    assert same_bits(out[-77:], expected)
    assert finite == 1


@pytest.mark.parametrize("number", NUMBERS)
def test_scatter(number):
    values = torch.from_numpy(normals(23, 300))
    out = reserved(MANY, number)
    places = torch.from_numpy(np.random.default_rng(23).permutation(1000)[:300]) + MANY - 1000
    many = ending_with(places, MANY), ending_with(values, MANY)
    CudaKernels(LastBlocks()).scatter(out, *many, 0.3)
    expected = torch.zeros(1000, dtype=number)
    expected[places - (MANY - 1000)] = (0.3 * values).to(number)
    assert torch.equal(out[-1000:], expected)


@pytest.mark.parametrize("number", NUMBERS[1:])
def test_casts(number):
    count, scale = 2**32 + 77, torch.tensor(0.3)
    tail = torch.from_numpy(normals(24, 300))
    narrow, wide = reserved(count, number), reserved(count, torch.float32)
    kernels = CudaKernels(LastBlocks())
    kernels.cast(narrow, ending_with(tail, count), scale)
    assert torch.equal(narrow[-300:], (tail * scale).to(number))
    kernels.cast(wide, narrow, scale)
    assert torch.equal(wide[-300:], narrow[-300:].float() * scale)
