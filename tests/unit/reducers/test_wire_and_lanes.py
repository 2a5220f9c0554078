import math
from collections.abc import Sequence
from zlib import crc32

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gsdist.reducers.agreement_lanes import FlagAndLanes, all_agree
from gsdist.reducers.finite import all_finite
from gsdist.reducers.wire import SumWire, largest

NO_FLAG = torch.zeros(1)


def agree(held: Sequence[bytes]) -> bool:
    """Sum what the ranks send, a flag of every second one included, and read the verdict."""
    sent = [FlagAndLanes().of(rank % 2 == 1, content) for rank, content in enumerate(held)]
    flags, *lanes = torch.stack(sent).sum(dim=0).tolist()
    assert flags == len(held) // 2
    return all_agree(lanes, len(held))


@given(st.binary(max_size=12), st.integers(1, 50))
def test_ranks_that_hold_the_same_agree_at_any_world_size(content: bytes, world_size: int) -> None:
    assert agree([content] * world_size)


@given(st.lists(st.binary(max_size=4), min_size=2, max_size=6))
def test_lanes_agree_exactly_when_all_hold_the_same(held: list[bytes]) -> None:
    # within 4 bytes of one length a CRC-32 has no collisions
    held = [content.ljust(4, b"-") for content in held]
    assert agree(held) == (len(set(held)) == 1)


def test_lanes_catch_what_a_summed_hash_misses() -> None:
    """Checksums whose mean is that of a rank: it would see nothing wrong."""
    checksums = {crc32(bytes([octet])): bytes([octet]) for octet in range(256)}
    own, other = next(
        (own, other)
        for own in checksums
        for other in checksums
        if other != own and 2 * own - other in checksums
    )
    assert not agree([checksums[own], checksums[other], checksums[2 * own - other]])


def test_lanes_are_the_bits_of_the_checksum() -> None:
    sent = FlagAndLanes().of(True, b"123456789")
    assert sent.dtype == torch.float32
    # the check value of CRC-32
    assert sent.tolist() == [1, *(int(bit) for bit in reversed(f"{0xCBF43926:032b}"))]


@pytest.mark.parametrize("damaged", [math.nan, math.inf, 0.5, 3.0])
def test_damaged_lanes_do_not_agree(damaged: float) -> None:
    assert not all_agree([0.0, 2.0, damaged], 2)


@given(
    st.floats(1e-20, 1e20),
    st.sampled_from(["float16", "bfloat16", "float32"]),
    st.integers(1, 4),
)
def test_tables_survive_the_wire_to_its_precision(size: float, dtype: str, world_size: int) -> None:
    unit = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-23}[dtype]
    wire, generator = SumWire(dtype), torch.Generator().manual_seed(0)
    for _ in range(3):  # the first merge sets the scale of the next
        table = torch.randn(3, 64, generator=generator) * size
        buffer = wire.pack(table, torch.ones(1))
        merged = torch.empty_like(table)
        wire.unpack(buffer * world_size, merged)
        wire.remember(merged)
        assert float(buffer[-1]) == 1.0
        error = (merged / world_size - table).abs().max() / table.abs().max()
        assert float(error) <= 2 * unit


@pytest.mark.parametrize("spoilt", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 17, 999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_not_finite_shows(spoilt: float, place: int, dtype: torch.dtype) -> None:
    values = torch.full((1000,), -torch.finfo(dtype).max, dtype=dtype)  # their sum overflows
    assert all_finite(values)
    assert largest(values) == torch.finfo(dtype).max
    values[place] = spoilt
    assert not all_finite(values)
    assert not math.isfinite(largest(values))


def test_first_table_and_exact_repeat_travel_in_float32() -> None:
    wire, table = SumWire("float16"), torch.ones(1, 64)
    assert wire.pack(table, NO_FLAG).dtype == torch.float32
    wire.remember(table)
    assert wire.pack(table, NO_FLAG).dtype == torch.float16
    assert wire.pack(table, NO_FLAG, exact=True).dtype == torch.float32


def test_scale_leaves_room_for_growth_and_overflow_shows() -> None:
    wire, table = SumWire("float16"), torch.ones(1, 64)
    wire.remember(table)
    assert torch.isfinite(wire.pack(table * 256, NO_FLAG)).all()
    assert not torch.isfinite(wire.pack(table * 1024, NO_FLAG)).all()
