"""The GPU's kernels, emulated on the CPU, against the reference: bit by bit, at every edge."""

import mmap

import numpy as np
import pytest
import torch

from gsdist.sketch import reference
from gsdist.sketch.cuda_kernels import CudaKernels
from tests.emulation.launcher import EmulatedLauncher
from tests.unit.sketch import oracle

THREADS = 256
QUADS = 4 * THREADS  # coordinates that a thread block of the dense kernels handles
SIZES = [0, 1, 3, 63, 64, 65, THREADS - 1, THREADS, THREADS + 1, QUADS - 1, QUADS, QUADS + 1, 5003]
NUMBERS = [torch.float32, torch.float16, torch.bfloat16]
SHUFFLES = [0, 1]
TOP = 2**40
SEED = 2**64 - 7


@pytest.fixture(params=SHUFFLES)
def kernels(request):
    """The kernels on threads in ascending order and in another: nothing may depend on it."""
    return CudaKernels(EmulatedLauncher(request.param))


@pytest.fixture
def in_order():
    """The kernels on threads in ascending order, in which atomic sums are those of the CPU too."""
    return CudaKernels(EmulatedLauncher())


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


OFFSETS = [0, 1, 63, 64, 2**31 - 5, 2**33 + 2, TOP - 5100]


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("size", SIZES)
def test_dense_encoding(in_order, size, offset):
    values = normals(1, size)
    table = table_of(3, 640)
    cells = torch.from_numpy(table.copy())
    in_order.encode_dense(cells, SEED, torch.from_numpy(values), offset)
    assert same_bits(cells, encoded(table, values, offset))


@pytest.mark.parametrize("rows", range(1, 16, 2))
@pytest.mark.parametrize("number", NUMBERS)
def test_dense_encoding_of_all_number_types_and_rows(in_order, kernels, rows, number):
    values = torch.from_numpy(normals(rows, 3001)).to(number)[1:]  # not aligned
    table = table_of(rows, 192)
    expected = encoded(table, values.float().numpy(), 62)
    cells = torch.from_numpy(table.copy())
    in_order.encode_dense(cells, SEED, values, 62)
    assert same_bits(cells, expected)
    cells = torch.from_numpy(table.copy())
    order = kernels.ordered_blocks(cells, SEED, 62, values.numel())
    kernels.encode_dense_ordered(cells, SEED, values, 62, order)
    assert same_bits(cells, expected)


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("size", SIZES)
def test_ordered_dense_encoding_does_not_depend_on_the_threads(size, offset):
    values, table = normals(1, size), table_of(3, 640)
    for shuffle in SHUFFLES:
        kernels = CudaKernels(EmulatedLauncher(shuffle))
        cells = torch.from_numpy(table.copy())
        order = kernels.ordered_blocks(cells, SEED, offset, size)
        kernels.encode_dense_ordered(cells, SEED, torch.from_numpy(values), offset, order)
        assert same_bits(cells, encoded(table, values, offset))


def test_the_emulation_shows_that_atomic_sums_depend_on_the_threads():
    values, table = normals(1, 50_000), table_of(3, 64)
    cells = torch.from_numpy(table.copy())
    CudaKernels(EmulatedLauncher(1)).encode_dense(cells, SEED, torch.from_numpy(values), 0)
    expected = encoded(table, values, 0)
    assert not same_bits(cells, expected)
    np.testing.assert_allclose(cells, expected, atol=1e-3)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("size", [s for s in SIZES if s < 2000])
def test_sparse_encoding(in_order, kernels, size, number):
    values = torch.from_numpy(normals(2, size)).to(number)
    indices = np.random.default_rng(size).integers(0, TOP, size)
    indices[size // 2 :] = indices[: size - size // 2] // 2**30  # some repeat, some are close
    table = table_of(5, 128)
    expected = table.copy()
    reference.encode_sparse(expected, SEED, indices, values.float().numpy(), 1)
    for encode in (in_order.encode_sparse, kernels.encode_sparse_ordered):
        cells = torch.from_numpy(table.copy())
        encode(cells, SEED, torch.from_numpy(indices), values)
        assert same_bits(cells, expected)


@pytest.mark.parametrize("rows", range(1, 16, 2))
@pytest.mark.parametrize("size", [0, 1, THREADS - 1, THREADS, THREADS + 1, 1000])
def test_estimates(kernels, rows, size):
    table = table_of(rows, 320)
    indices = np.random.default_rng(rows).integers(0, TOP, size)
    expected, out = np.empty(size, np.float32), torch.empty(size)
    reference.estimate(table, SEED, indices, expected, 1)
    kernels.estimate(torch.from_numpy(table), SEED, torch.from_numpy(indices), out)
    assert np.array_equal(out, expected)


TILE = 64 * THREADS
DIMENSIONS = [1, 63, 64, 65, TILE - 1, TILE, TILE + 1, 40_000]


def shares(dimension):
    return sorted(
        {1, max(1, dimension // 1000), -(-dimension // 3), max(1, dimension - 1), dimension}
    )


@pytest.mark.parametrize("filled", [0.02, 1.0])
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_heavy_hitters(kernels, dimension, filled):
    table = table_of(3, 1280)
    table[:, np.random.default_rng(5).random(1280) >= filled] = 0
    for k in shares(dimension):
        expected = reference.heavy_hitters(table, SEED, dimension, k, 1)
        found = kernels.heavy_hitters(torch.from_numpy(table), SEED, dimension, k)
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("rows", range(1, 16, 2))
def test_heavy_hitters_of_all_numbers_of_rows(kernels, rows):
    table = table_of(rows, 1280)
    expected = reference.heavy_hitters(table, 1, 10_000, 100, 1)
    found = kernels.heavy_hitters(torch.from_numpy(table), 1, 10_000, 100)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("kind", ["ties", "zeros", "normal"])
def test_top_k(kernels, dimension, kind):
    values = normals(dimension, dimension)
    if kind == "ties":
        values = np.sign(values)
    elif kind == "zeros":
        values[dimension // 50 :] = -0.0
    for k in shares(dimension):
        expected = reference.top_k(values, k, 1)
        assert np.array_equal(kernels.top_k(torch.from_numpy(values), k), expected)


def test_a_threshold_that_is_far_too_low_is_made_up_for(kernels):
    """All that matters sits in one place, which the sample misses."""
    values = np.zeros(100_000, np.float32)
    values[77_700:78_340] = np.arange(1, 641)
    values[:1000] = 1e-3
    for k in (10, 640, 1500):
        expected = reference.top_k(values, k, 1)
        assert np.array_equal(kernels.top_k(torch.from_numpy(values), k), expected)


def misleading(blocks):
    """Return values of `blocks` blocks that are large exactly where the selection samples."""
    taken = 512
    values = normals(10, 64 * blocks)
    values[: 64 * 300] = 0
    for j in range(taken):
        begin, end = j * blocks // taken, (j + 1) * blocks // taken
        block = begin + ((end - begin) * (oracle.mix64(j) >> 32) >> 32)
        values[64 * block : 64 * block + 64] += 100
    return values


@pytest.mark.parametrize("k", [40_000, 70_000])
def test_a_threshold_that_is_too_high_is_made_up_for(kernels, k):
    """33 thousand values reach it: more are wanted, zeros among them or not."""
    values = misleading(1300)
    expected = reference.top_k(values, k, 1)
    assert np.array_equal(kernels.top_k(torch.from_numpy(values), k), expected)
    table = encoded(np.zeros((1, 2**17), np.float32), values, 0)
    expected = reference.heavy_hitters(table, SEED, values.size, k, 1)
    found = kernels.heavy_hitters(torch.from_numpy(table), SEED, values.size, k)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_selection_ends_on_values_that_are_not_finite(kernels, bad):
    values = normals(9, 20_000)
    values[100:400] = bad
    expected = reference.top_k(values, 1000, 1)
    assert np.array_equal(kernels.top_k(torch.from_numpy(values), 1000), expected)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("size", SIZES)
def test_compensate(kernels, size, number):
    gradient, residual, momentum = (torch.from_numpy(normals(s, size)) for s in (20, 21, 22))
    gradient = gradient.to(number)
    for some_residual, some_momentum, nesterov in [
        (None, None, False),
        (residual, None, False),
        (residual, momentum, False),
        (residual, momentum, True),
    ]:
        out, expected = torch.full((size,), torch.nan), np.empty(size, np.float32)
        finite = kernels.compensate(out, some_residual, some_momentum, gradient, 0.3, 0.9, nesterov)
        reference.compensate(
            expected,
            np.zeros(size, np.float32) if some_residual is None else some_residual.numpy(),
            None if some_momentum is None else some_momentum.numpy(),
            gradient.float().numpy(),
            0.3,
            0.9,
            nesterov,
            1,
        )
        assert same_bits(out, expected)
        assert finite == 1


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("place", [0, 255, 256, 999])
def test_compensate_reports_values_that_are_not_finite(kernels, place, bad):
    gradient = torch.ones(1000)
    gradient[place] = bad
    assert kernels.compensate(torch.empty(1000), None, None, gradient, 1.0, 0.0, False) == 0


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("size", [0, 1, THREADS - 1, THREADS, THREADS + 1])
def test_scatter(kernels, size, number):
    indices = torch.from_numpy(np.random.default_rng(size).permutation(1000)[:size])
    values = torch.from_numpy(normals(4, size))
    out, expected = torch.zeros(1000, dtype=number), torch.zeros(1000, dtype=number)
    expected[indices] = (values * 0.3).to(number)
    kernels.scatter(out, indices, values, 0.3)
    assert torch.equal(out, expected)


def test_scatter_writes_nothing_outside(kernels):
    out = torch.zeros(10)
    indices = torch.tensor([-1, 3, 9, 10, 2**40])
    kernels.scatter(out[:10], indices, torch.ones(5), 1.0)
    assert out.tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 1]


def awkward(size):
    """Numbers of every size with ties between two narrow numbers among them, and infinities."""
    generator = np.random.default_rng(size)
    bits = generator.integers(0, 2**32, size, dtype=np.uint32)
    bits[::2] &= 0xFFFF0000 | 0x1000 | 0x8000
    bits[1::4] = bits[1::4] & 0x8FFFFFFF | 0x30000000  # where float16 is subnormal, and around
    values = torch.from_numpy(bits.view(np.float32).copy())
    values[:4] = torch.tensor([torch.inf, -torch.inf, torch.nan, 65520.0])[: max(size, 0)][:4]
    return values


@pytest.mark.parametrize("number", [torch.float16, torch.bfloat16])
def test_casts_round_as_torch_does(kernels, number):
    values = awkward(20_001)
    one = torch.ones(())
    narrow = torch.empty(20_001, dtype=number)
    kernels.cast(narrow, values, one)
    torch.testing.assert_close(narrow, values.to(number), rtol=0, atol=0, equal_nan=True)
    finite = torch.isfinite(narrow)
    assert torch.equal(
        narrow[finite].view(torch.int16), values.to(number)[finite].view(torch.int16)
    )


@pytest.mark.parametrize("number", [torch.float16, torch.bfloat16])
def test_casts_back_are_exact_for_all_numbers(kernels, number):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(number)
    wide = torch.empty(2**16)
    kernels.cast(wide, every, torch.ones(()))
    torch.testing.assert_close(wide, every.float(), rtol=0, atol=0, equal_nan=True)
    number_of = ~torch.isnan(every)
    assert same_bits(wide[number_of], every.float()[number_of])


@pytest.mark.parametrize("size", [0, 1, THREADS - 1, THREADS, THREADS + 1])
def test_casts_scale(kernels, size):
    values, scale = torch.from_numpy(normals(5, size)), torch.tensor(0.3)
    narrow, wide = torch.empty(size, dtype=torch.float16), torch.empty(size)
    kernels.cast(narrow, values, scale)
    assert torch.equal(narrow, (values * scale).half())
    kernels.cast(wide, narrow, scale)
    assert torch.equal(wide, narrow.float() * scale)


# Beyond 2^31: arrays that exist as addresses only, and the thread blocks at their ends.


def reserved(count, dtype):
    """Return a tensor of zeros whose memory the system hands out page by page, where it is used."""
    without_reserve = getattr(mmap, "MAP_NORESERVE", 0x4000)  # has a name from Python 3.13 on
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | without_reserve
    memory = mmap.mmap(-1, count * dtype.itemsize, flags=flags)
    return torch.frombuffer(memory, dtype=dtype)


class LastBlocks(EmulatedLauncher):
    """Run only the last two thread blocks of every kernel."""

    def launch(self, kernel, thread_blocks, arguments):
        self.launch_part(kernel, thread_blocks, thread_blocks - 2, thread_blocks, arguments)


@pytest.mark.parametrize("count", [2**31 + 77, 2**34 + 77])
def test_dense_encoding_of_more_values_than_32_bits_count(count):
    values, cells = reserved(count, torch.float32), torch.zeros(3, 320)
    tail = normals(6, 1000)
    values[-1000:] = torch.from_numpy(tail)
    CudaKernels(LastBlocks()).encode_dense(cells, SEED, values, 5)
    assert same_bits(cells, encoded(np.zeros((3, 320), np.float32), tail, 5 + count - 1000))


def test_tables_of_more_cells_than_32_bits_count(in_order):
    rows, columns = 3, 2**31
    indices = np.random.default_rng(7).integers(0, TOP, 300)
    values = normals(7, 300)
    cells, other = (reserved(rows * columns, torch.float32).view(rows, columns) for _ in range(2))
    in_order.encode_sparse(cells, SEED, torch.from_numpy(indices), torch.from_numpy(values))
    in_order.encode_sparse_ordered(other, SEED, torch.from_numpy(indices), torch.from_numpy(values))
    for found in (cells, other):
        expected, out = np.empty(300, np.float32), torch.empty(300)
        reference.estimate(found.numpy(), SEED, indices, expected, 1)
        in_order.estimate(found, SEED, torch.from_numpy(indices), out)
        assert np.array_equal(out, expected)
        assert np.array_equal(out, values)


def selection_state(threshold, k):
    """Return the state of a selection whose scan is about to begin."""
    state = torch.zeros(5 + 2048, dtype=torch.int64)
    state[0] = k
    state[3] = threshold << 32
    state[4] = 1
    return state


def marked(marks, first_block):
    """Return the coordinates marked from a block on."""
    bits = np.unpackbits(marks[first_block:].numpy().view(np.uint8), bitorder="little")
    return np.flatnonzero(bits) + first_block * 64


def test_finding_values_beyond_32_bits():
    dimension = 2**32 + 77
    values, marks = reserved(dimension, torch.float32), reserved(dimension // 64 + 1, torch.int64)
    values[-100:] = torch.from_numpy(normals(8, 100))
    threshold = np.float32(0.5)
    state = selection_state(int(threshold.view(np.uint32)), 5)
    tiles = -(-dimension // TILE)
    LastBlocks().launch("find_values", tiles, (state, marks, values, dimension))
    expected = np.flatnonzero(values[-100:].abs() >= 0.5) + dimension - 100
    assert np.array_equal(marked(marks, dimension // 64 - 10), expected)
    assert state[2] == len(expected)

    counts = reserved(2 * tiles, torch.int64)
    LastBlocks().launch("count_chosen_values", tiles, (state, marks, counts, dimension, values))
    EmulatedLauncher().launch("place_tiles", 1, (counts[-4:], 2))
    chosen = torch.full((TILE + 77,), -1)
    state[0] = len(expected) + 3  # more than were marked: the lowest others fill up
    arguments = (state, marks, counts, chosen, dimension, values)
    LastBlocks().launch("write_chosen_values", tiles, arguments)
    others = np.setdiff1d(np.arange((tiles - 2) * TILE, dimension), expected)[:3]
    assert np.array_equal(chosen[: len(expected) + 3], np.sort(np.append(others, expected)))


def test_finding_estimates_beyond_32_bits(in_order):
    dimension = 2**36 + 77
    table = table_of(5, 1280)
    cells = torch.from_numpy(table)
    marks = reserved(dimension // 64 + 1, torch.int64)
    threshold = np.float32(1.0)
    state = selection_state(int(threshold.view(np.uint32)), 5)
    masks = torch.empty(2 * table.size // 64, dtype=torch.int64)
    blocks = -(-table.size // 64 * 32 // THREADS)
    in_order._launch("mask_cells", blocks, state, cells, masks, table.size // 64)
    tiles = -(-dimension // TILE)
    arguments = (state, marks, masks, 5, 1280, SEED, dimension)
    LastBlocks().launch("find_estimates", tiles, arguments)
    first = (tiles - 2) * TILE
    indices, estimates = np.arange(first, dimension), np.empty(dimension - first, np.float32)
    reference.estimate(table, SEED, indices, estimates, 1)
    assert np.array_equal(marked(marks, first // 64), indices[np.abs(estimates) >= threshold])


def test_elementwise_kernels_beyond_32_bits():
    count = 2**32 + 77
    values, narrow = reserved(count, torch.float32), reserved(count, torch.float16)
    values[-77:] = torch.from_numpy(normals(9, 77))
    CudaKernels(LastBlocks()).cast(narrow, values, torch.ones(()))
    assert torch.equal(narrow[-77:], values[-77:].half())
    out = reserved(count, torch.float32)
    where = torch.arange(count - 77, count)
    CudaKernels(EmulatedLauncher()).scatter(out, where, values[-77:], 1.0)
    assert torch.equal(out[-77:], values[-77:])
