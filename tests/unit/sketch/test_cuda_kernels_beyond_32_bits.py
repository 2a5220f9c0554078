"""GPU kernels that encode, estimate, add, cast and scatter, emulated, where 32 bits do not suffice."""

import numpy as np
import pytest
import torch

from gsdist.sketch import reference
from gsdist.sketch.cuda_kernels import BlockOrder, CudaKernels
from tests.emulation.cases import (
    NUMBERS,
    SEED,
    TOP,
    encoded,
    normals,
    same_bits,
    table_of,
)
from tests.emulation.huge import BlockAt, LastBlocks, blocks_for, ending_with, reserved
from tests.emulation.launcher import EmulatedLauncher
from tests.unit.sketch import oracle

MANY = 2**31 + 77
NO_CELLS = np.zeros((3, 320), np.float32)


@pytest.fixture
def in_order():
    return CudaKernels(EmulatedLauncher())


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
