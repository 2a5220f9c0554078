"""Bytes in, bytes out: exact round trips, and damage that is always noticed."""

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsdist.errors import ConfigError, InputTypeError, WireFormatError
from gsdist.sketch import CountSketch, SketchFormat

FORMAT = SketchFormat(rows=3, columns=64, seed=2**64 - 1, dimension=2**40)


def example(scale=1.0, sketch_format=FORMAT):
    sketch = CountSketch(sketch_format)
    rng = np.random.default_rng(3)
    sketch.table[:] = scale * rng.standard_normal(sketch_format.table_shape)
    return sketch


def reseal(data):
    """Give changed bytes a right checksum, so that the checks behind it are reached."""
    checksum = zlib.crc32(data[48:], zlib.crc32(data[:40]))
    return data[:40] + struct.pack("<I", checksum) + data[44:]


def with_field(offset, layout, value):
    data = bytearray(example().to_bytes())
    struct.pack_into(layout, data, offset, value)
    return reseal(bytes(data))


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from([1, 3, 5, 15]),
    st.integers(1, 5),
    st.integers(0, 2**64 - 1),
    st.integers(1, 2**40),
    st.integers(0, 2**32),
)
def test_float32_round_trip_is_exact(rows, blocks, seed, dimension, content):
    sketch_format = SketchFormat(rows=rows, columns=blocks * 64, seed=seed, dimension=dimension)
    sketch = CountSketch(sketch_format)
    rng = np.random.default_rng(content)
    sketch.table[:] = rng.standard_normal(sketch_format.table_shape)
    back = CountSketch.from_bytes(sketch.to_bytes())
    assert back.format == sketch_format
    assert np.array_equal(back.table, sketch.table)
    assert back.to_bytes() == sketch.to_bytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e3])
def test_half_precision_rounds_like_torch(dtype, scale):
    sketch = example(scale)
    data = sketch.to_bytes(dtype)
    assert len(data) == 48 + 2 * 3 * 64
    expected = torch.from_numpy(sketch.table).to(getattr(torch, dtype)).float().numpy()
    assert np.array_equal(CountSketch.from_bytes(data).table, expected)


def test_bfloat16_rounds_halfway_cases_to_even():
    sketch = CountSketch(FORMAT)
    sketch.table[0, :4] = [1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8), 1 + 2**-8 + 2**-20]
    back = CountSketch.from_bytes(sketch.to_bytes("bfloat16"))
    assert back.table[0, :4].tolist() == [1.0, 1 + 2**-6, -1.0, 1 + 2**-7]


def test_reads_bytearrays_and_memoryviews_and_owns_its_table():
    data = bytearray(example().to_bytes())
    for source in (data, memoryview(data)):
        back = CountSketch.from_bytes(source)
        assert np.array_equal(back.table, example().table)
        back.zero_()
    assert bytes(data) == example().to_bytes()


def test_a_torch_table_gives_the_same_bytes():
    table = torch.from_numpy(example().table.copy())
    assert CountSketch(FORMAT, table).to_bytes("float16") == example().to_bytes("float16")


@pytest.mark.parametrize(("dtype", "largest"), [("float16", 70000.0), ("bfloat16", 3.4e38)])
def test_overflow_is_an_error_with_the_way_out(dtype, largest):
    sketch = example()
    sketch.table[1, 7] = -largest
    with pytest.raises(WireFormatError, match=f"is too large for {dtype}.*float32") as caught:
        sketch.to_bytes(dtype)
    assert f"{largest:g}" in str(caught.value)
    assert CountSketch.from_bytes(sketch.to_bytes()).table[1, 7] == np.float32(-largest)


@pytest.mark.parametrize("spoiler", [np.nan, np.inf])
def test_cells_that_are_not_finite_are_refused_both_ways(spoiler):
    sketch = example()
    sketch.table[0, 0] = spoiler
    with pytest.raises(WireFormatError, match="NaN or infinity"):
        sketch.to_bytes()
    with pytest.raises(WireFormatError, match="NaN or infinity"):
        CountSketch.from_bytes(with_field(48, "<f", spoiler))


def test_unknown_dtype_is_refused():
    with pytest.raises(ConfigError, match=r"dtype='int8'.*float32, float16, bfloat16"):
        example().to_bytes("int8")


@pytest.mark.parametrize("data", ["text", None, 5, np.zeros(100, np.uint8)])
def test_what_is_not_bytes_is_refused(data):
    with pytest.raises(InputTypeError, match="expected bytes, got"):
        CountSketch.from_bytes(data)


@pytest.mark.parametrize(
    ("offset", "layout", "value", "message"),
    [
        (0, "<8s", b"gsdistCX", "starts with b'gsdistCX'"),
        (8, "<H", 2, "version 2, this gsdist reads version 1"),
        (10, "<H", 0, "unknown cell type 0"),
        (12, "<I", 4, "rows=4"),
        (12, "<I", 2**32 - 1, "rows=4294967295"),
        (16, "<Q", 65, "columns=65"),
        (16, "<Q", 2**63, "columns=9223372036854775808"),
        (16, "<Q", 128, "3 x 128 cells"),
        (32, "<Q", 0, "dimension=0"),
        (44, "<I", 1, "where 0 belongs"),
    ],
)
def test_impossible_headers_are_refused_naming_the_value(offset, layout, value, message):
    with pytest.raises(WireFormatError, match=message):
        CountSketch.from_bytes(with_field(offset, layout, value))


def test_a_header_that_promises_terabytes_allocates_nothing():
    data = with_field(16, "<Q", (2**32 - 1) * 64)
    tracemalloc.start()
    try:
        with pytest.raises(WireFormatError, match="has 3298534882608 bytes, got 816"):
            CountSketch.from_bytes(data)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


DTYPES = st.sampled_from(["float32", "float16", "bfloat16"])


@settings(deadline=None, max_examples=200)
@given(DTYPES, st.integers(0, 2**32), st.integers(0, 7))
def test_any_flipped_bit_is_noticed(dtype, position, bit):
    data = bytearray(example().to_bytes(dtype))
    data[position % len(data)] ^= 1 << bit
    with pytest.raises(WireFormatError):
        CountSketch.from_bytes(bytes(data))


@settings(deadline=None, max_examples=100)
@given(DTYPES, st.integers(0, 2**32), st.binary(max_size=20))
def test_truncated_or_extended_bytes_are_refused(dtype, cut, extra):
    data = example().to_bytes(dtype)
    with pytest.raises(WireFormatError):
        CountSketch.from_bytes(data[: cut % len(data)])
    with pytest.raises(WireFormatError):
        CountSketch.from_bytes(data + extra + b"\0")


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200), st.binary(max_size=200), st.booleans())
def test_garbage_never_does_anything_but_raise(header, payload, genuine_start):
    data = (example().to_bytes()[:12] if genuine_start else b"") + header + payload
    if len(data) >= 48:
        data = reseal(data)
    with pytest.raises(WireFormatError):
        CountSketch.from_bytes(data)
