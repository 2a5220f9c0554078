"""Say which kernels of `csrc/cuda` run, in which order and on what memory; who launches is open.

Everything works on tensors that have been checked already, in the stream the launcher takes. No
step waits for the device, and workspace comes from torch's allocator, so that every call can be
captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gsdist.sketch.format import BLOCK

__all__ = ["NUMBER_TYPES", "THREADS", "Argument", "BlockOrder", "CudaKernels", "Launcher"]

Argument = Tensor | int | float | None
"""A tensor stands for its address, None for a null pointer, int for uint64, float for float32."""

NUMBER_TYPES = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}
"""What gradients may be made of."""

THREADS = 256
"""In every thread block, as in csrc/cuda."""

# As in csrc too: what the memory of a selection holds, and how much a thread or warp works on.
_QUAD = 4
_WARP = 32
_SELECTION_WORDS = 5 + 2048
_SAMPLE_BLOCKS = 4096
_DIGIT_SHIFTS = (20, 10, 0)

# Thread blocks of kernels that loop: enough to fill any GPU of today.
_LOOPING_BLOCKS = 1024


class Launcher(Protocol):
    """Start kernels on a device, in its current stream."""

    def launch(self, kernel: str, thread_blocks: int, arguments: tuple[Argument, ...]) -> None:
        """Start `thread_blocks` blocks of 256 threads; at least one argument is a tensor."""


@dataclass(frozen=True)
class BlockOrder:
    """Hold which blocks of a slice each bucket block takes, in ascending order.

    Takes 4 bytes per row for every 64 coordinates and 8 for every 64 cells.
    """

    order: Tensor
    """int32: for bucket block after bucket block its blocks, counted from the slice's first."""

    starts: Tensor
    """int64: where each bucket block begins in `order`, and a last entry for the end."""


def _blocks_for(items: int) -> int:
    return -(-items // THREADS)


class CudaKernels:
    """Run the operations of a sketch as sequences of launches."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher

    def _launch(self, kernel: str, thread_blocks: int, *arguments: Argument) -> None:
        if thread_blocks > 0:
            self._launcher.launch(kernel, thread_blocks, arguments)

    def encode_dense(self, table: Tensor, seed: int, values: Tensor, offset: int) -> None:
        """Add `values` at coordinates offset, offset + 1, ...; sums are rounded in any order."""
        quads = -(-(offset + values.numel()) // _QUAD) - offset // _QUAD
        self._launch(
            f"encode_dense_{NUMBER_TYPES[values.dtype]}",
            _blocks_for(quads) if values.numel() else 0,
            *_shape(table, seed),
            values,
            offset,
            values.numel(),
        )

    def encode_dense_ordered(
        self, table: Tensor, seed: int, values: Tensor, offset: int, blocks: BlockOrder
    ) -> None:
        """Add `values` as `encode_dense` does, in the order and with the bits of the CPU."""
        threads_per_bucket = BLOCK // _QUAD
        self._launch(
            f"encode_dense_ordered_{NUMBER_TYPES[values.dtype]}",
            _blocks_for(table.numel() // BLOCK * threads_per_bucket) if values.numel() else 0,
            *_shape(table, seed),
            values,
            offset,
            values.numel(),
            blocks.order,
            blocks.starts,
        )

    def ordered_blocks(self, table: Tensor, seed: int, offset: int, count: int) -> BlockOrder:
        """Return the order for slices of `count` values at `offset`, whatever values they hold.

        Sorting takes longer than encoding, so keep the order where slices recur.
        """
        rows, columns = table.shape
        first = offset // BLOCK
        blocks = -(-(offset + count) // BLOCK) - first
        buckets = torch.empty(rows, blocks, dtype=torch.int64, device=table.device)
        self._launch(
            "locate_blocks", _blocks_for(blocks), buckets, rows, columns, seed, first, blocks
        )
        in_order, order = torch.sort(buckets, dim=1, stable=True)
        bounds = torch.arange(columns // BLOCK, device=table.device).expand(rows, -1).contiguous()
        starts = torch.searchsorted(in_order, bounds)
        starts += torch.arange(rows, device=table.device).unsqueeze(1) * blocks
        return BlockOrder(
            order.to(torch.int32).flatten(),
            torch.cat([starts.flatten(), starts.new_full((1,), rows * blocks)]),
        )

    def encode_sparse(self, table: Tensor, seed: int, indices: Tensor, values: Tensor) -> None:
        """Add `values` at coordinates `indices`; sums are rounded in any order."""
        count = indices.numel()
        self._launch(
            f"encode_sparse_{NUMBER_TYPES[values.dtype]}",
            _blocks_for(count),
            *_shape(table, seed),
            indices,
            values,
            count,
        )

    def encode_sparse_ordered(
        self, table: Tensor, seed: int, indices: Tensor, values: Tensor
    ) -> None:
        """Add `values` at coordinates `indices`, in that order and with the bits of the CPU."""
        rows, columns = table.shape
        count = indices.numel()
        cells = torch.empty(rows * count, dtype=torch.int64, device=table.device)
        signed_values = torch.empty(rows * count, device=table.device)
        self._launch(
            f"locate_entries_{NUMBER_TYPES[values.dtype]}",
            _blocks_for(count),
            cells,
            signed_values,
            rows,
            columns,
            seed,
            indices,
            values,
            count,
        )
        cells, order = torch.sort(cells, stable=True)
        self._launch(
            "encode_sparse_ordered",
            _blocks_for(rows * count),
            table,
            cells,
            order,
            signed_values,
            rows * count,
        )

    def estimate(self, table: Tensor, seed: int, indices: Tensor, out: Tensor) -> None:
        """Write the median over the rows of sign * cell."""
        count = indices.numel()
        self._launch("estimate", _blocks_for(count), *_shape(table, seed), indices, out, count)

    def heavy_hitters(self, table: Tensor, seed: int, dimension: int, k: int) -> Tensor:
        """Return the k indices of largest |estimate|, ties to the lowest, ascending."""
        buckets = table.numel() // BLOCK
        masks = torch.empty(2 * buckets, dtype=torch.int64, device=table.device)
        selection = _Selection(dimension, k, table.device)

        def scan() -> None:
            self._launch(
                "mask_cells", _blocks_for(buckets * _WARP), selection.state, table, masks, buckets
            )
            rows, columns = table.shape
            self._launch(
                "find_estimates",
                selection.tiles,
                *(selection.state, selection.marks, masks, rows, columns, seed, dimension),
            )

        return self._select(selection, "estimates", _shape(table, seed), scan)

    def top_k(self, values: Tensor, k: int) -> Tensor:
        """Return the k indices of largest |value|, ties to the lowest, ascending."""
        count = values.numel()
        selection = _Selection(count, k, values.device)

        def scan() -> None:
            self._launch(
                "find_values", selection.tiles, selection.state, selection.marks, values, count
            )

        return self._select(selection, "values", (values,), scan)

    def _select(
        self,
        selection: _Selection,
        name: str,
        source: tuple[Argument, ...],
        scan: Callable[[], None],
    ) -> Tensor:
        state, marks, dimension = selection.state, selection.marks, selection.dimension
        sampled = selection.sample.numel()
        self._launch("begin_selection", 1, state, dimension, selection.k)
        self._launch(f"sample_{name}", _blocks_for(sampled), selection.sample, dimension, *source)
        for shift in _DIGIT_SHIFTS[:2]:
            self._launch(
                "count_digits_of_sample",
                _blocks_for(sampled),
                *(state, selection.sample, dimension, shift),
            )
            self._launch("pick_digit", 1, state, shift)
        self._launch("set_threshold", 1, state)
        scan()
        self._launch("lower_threshold", 1, state)
        scan()
        self._launch("begin_ranking", 1, state)
        for shift in _DIGIT_SHIFTS:
            looping = min(selection.tiles, _LOOPING_BLOCKS)
            self._launch(
                f"count_digits_of_{name}", looping, state, marks, dimension, shift, *source
            )
            self._launch("pick_digit", 1, state, shift)
        chosen = torch.empty(selection.k, dtype=torch.int64, device=state.device)
        tiles = selection.tile_counts
        self._launch(
            f"count_chosen_{name}", selection.tiles, state, marks, tiles, dimension, *source
        )
        self._launch("place_tiles", 1, tiles, selection.tiles)
        self._launch(
            f"write_chosen_{name}", selection.tiles, state, marks, tiles, chosen, dimension, *source
        )
        return chosen

    def compensate(
        self,
        out: Tensor,
        residual: Tensor | None,
        momentum: Tensor | None,
        gradient: Tensor,
        scale: float,
        momentum_factor: float,
        nesterov: bool,
    ) -> Tensor:
        """Write residual + update; return an int32 scalar, 1 if all of it is finite, else 0."""
        finite = torch.ones((), dtype=torch.int32, device=out.device)
        self._launch(
            f"compensate_{NUMBER_TYPES[gradient.dtype]}",
            min(_blocks_for(out.numel()), 16 * _LOOPING_BLOCKS),
            out,
            finite,
            residual,
            momentum,
            gradient,
            float(scale),
            float(momentum_factor),
            int(nesterov),
            out.numel(),
        )
        return finite

    def scatter(self, out: Tensor, indices: Tensor, values: Tensor, scale: float) -> None:
        """Write scale * values at `indices` of `out`, rounded to its type."""
        count = indices.numel()
        self._launch(
            f"scatter_{NUMBER_TYPES[out.dtype]}",
            _blocks_for(count),
            out,
            out.numel(),
            indices,
            values,
            float(scale),
            count,
        )

    def cast(self, out: Tensor, values: Tensor, scale: Tensor) -> None:
        """Write scale * values to `out`, one of them float32, the other float16 or bfloat16."""
        narrowing = values.dtype == torch.float32
        kernel = (
            f"cast_to_{NUMBER_TYPES[out.dtype]}"
            if narrowing
            else f"cast_from_{NUMBER_TYPES[values.dtype]}"
        )
        self._launch(kernel, _blocks_for(out.numel()), out, values, scale, out.numel())


def _shape(table: Tensor, seed: int) -> tuple[Tensor, int, int, int]:
    rows, columns = table.shape
    return table, rows, columns, seed


class _Selection:
    """Hold the workspace of one selection; about one bit for every coordinate."""

    def __init__(self, dimension: int, k: int, device: torch.device) -> None:
        def words(count: int) -> Tensor:
            return torch.empty(count, dtype=torch.int64, device=device)

        self.dimension = dimension
        self.k = k
        blocks = -(-dimension // BLOCK)
        self.tiles = _blocks_for(blocks)
        self.state = words(_SELECTION_WORDS)
        self.marks = words(blocks)
        self.tile_counts = words(2 * self.tiles)
        self.sample = torch.empty(
            min(blocks, _SAMPLE_BLOCKS) * BLOCK, dtype=torch.int32, device=device
        )
