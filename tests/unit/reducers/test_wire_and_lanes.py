import torch
from hypothesis import given
from hypothesis import strategies as st

from gsdist.reducers.agreement_lanes import all_agree, bit_lanes
from gsdist.reducers.wire import SumWire

words = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3)


NO_FLAG = torch.zeros(1)


@given(words, st.integers(1, 50))
def test_equal_values_agree_at_any_world_size(values: list[int], world_size: int) -> None:
    assert all_agree(sum(bit_lanes(values) for _ in range(world_size)), world_size)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=6))
def test_lanes_agree_exactly_when_all_values_are_equal(values: list[int]) -> None:
    summed = sum(bit_lanes([value]) for value in values)
    assert all_agree(summed, len(values)) == (len(set(values)) == 1)


def test_lanes_catch_what_a_summed_hash_misses() -> None:
    """Hashes 1, 2, 3 sum to 3 * 2: rank 1 would see nothing wrong."""
    assert not all_agree(sum(bit_lanes([value]) for value in (1, 2, 3)), 3)


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


def test_first_table_and_exact_repeat_travel_in_float32() -> None:
    wire, table = SumWire("float16"), torch.ones(1, 64)
    assert wire.pack(table, NO_FLAG).dtype == torch.float32
    wire.remember(table)
    assert wire.pack(table, NO_FLAG).dtype == torch.float16
    assert wire.pack(table, NO_FLAG, exact=True).dtype == torch.float32


def test_scale_leaves_room_for_growth_and_overflow_shows() -> None:
    wire, table = SumWire("float16"), torch.ones(1, 64)
    wire.remember(table)
    assert torch.isfinite(wire.pack(table * 8, NO_FLAG)).all()
    assert not torch.isfinite(wire.pack(table * 32, NO_FLAG)).all()
