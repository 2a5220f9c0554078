"""The GPU's kernels, emulated on the CPU, against the reference: bit by bit, at every edge."""

import numpy as np
import pytest
import torch

from gsdist.sketch import reference
from gsdist.sketch.cuda_kernels import CudaKernels
from tests.emulation.cases import (
    NUMBERS,
    SEED,
    THREADS,
    TILE,
    TOP,
    differ_within_rounding,
    encoded,
    nearly_tied,
    normals,
    same_bits,
    table_of,
)
from tests.emulation.launcher import EmulatedLauncher
from tests.unit.sketch import oracle

QUADS = 4 * THREADS  # coordinates that a thread block of the dense kernels handles
SIZES = [0, 1, 3, 63, 64, 65, THREADS - 1, THREADS, THREADS + 1, QUADS - 1, QUADS, QUADS + 1, 5003]
SHUFFLES = [0, 1]


@pytest.fixture(params=SHUFFLES)
def kernels(request):
    """The kernels on threads in ascending order and in another: nothing may depend on it."""
    return CudaKernels(EmulatedLauncher(request.param))


@pytest.fixture
def in_order():
    """The kernels on threads in ascending order, in which atomic sums are those of the CPU too."""
    return CudaKernels(EmulatedLauncher())


OFFSETS = [0, 1, 63, 64, 2**31 - 5, 2**33 + 2, TOP - 5100]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("size", SIZES)
def test_dense_encoding(in_order, size, offset, number):
    values = torch.from_numpy(normals(1, size)).to(number)
    table = table_of(3, 640)
    cells = torch.from_numpy(table.copy())
    in_order.encode_dense(cells, SEED, values, offset)
    assert same_bits(cells, encoded(table, values.float().numpy(), offset))


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


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("size", SIZES)
def test_ordered_dense_encoding_does_not_depend_on_the_threads(size, offset, number):
    values, table = torch.from_numpy(normals(1, size)).to(number), table_of(3, 640)
    for shuffle in SHUFFLES:
        kernels = CudaKernels(EmulatedLauncher(shuffle))
        cells = torch.from_numpy(table.copy())
        order = kernels.ordered_blocks(cells, SEED, offset, size)
        kernels.encode_dense_ordered(cells, SEED, values, offset, order)
        assert same_bits(cells, encoded(table, values.float().numpy(), offset))


def test_the_emulation_shows_that_atomic_sums_depend_on_the_threads():
    values, table = normals(1, 50_000), table_of(3, 64)
    cells = torch.from_numpy(table.copy())
    CudaKernels(EmulatedLauncher(1)).encode_dense(cells, SEED, torch.from_numpy(values), 0)
    expected = encoded(table, values, 0)
    assert not same_bits(cells, expected)
    np.testing.assert_allclose(cells, expected, atol=1e-3)


def test_after_atomic_sums_selections_differ_within_rounding():
    values = nearly_tied(40_000)
    kernels, cells = CudaKernels(EmulatedLauncher(1)), torch.zeros(3, 4096)
    kernels.encode_dense(cells, SEED, torch.from_numpy(values), 0)
    expected = encoded(np.zeros((3, 4096), np.float32), values, 0)
    chosen = kernels.heavy_hitters(cells, SEED, 40_000, 500).numpy()
    assert differ_within_rounding(chosen, cells.numpy(), expected, SEED, 40_000)
    assert chosen.tolist() != reference.heavy_hitters(expected, SEED, 40_000, 500, 1).tolist()


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


@pytest.mark.parametrize("number", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [0, 1, THREADS - 1, THREADS, THREADS + 1, 1000])
def test_casts_scale(kernels, size, number):
    values, scale = torch.from_numpy(normals(5, size)), torch.tensor(0.3)
    narrow, wide = torch.empty(size, dtype=number), torch.empty(size)
    kernels.cast(narrow, values, scale)
    assert torch.equal(narrow, (values * scale).to(number))
    kernels.cast(wide, narrow, scale)
    assert torch.equal(wide, narrow.float() * scale)
