"""CountSketch as users meet it: linear, mergeable, and strict about what it is given."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsdist.errors import ConfigError, InputTypeError, WireFormatError
from gsdist.sketch import (
    BLOCK,
    CountSketch,
    SketchFormat,
    backend,
    get_num_threads,
    set_num_threads,
)

FORMAT = SketchFormat(rows=3, columns=256, seed=42, dimension=2000)
# Small integers: every sum is exact in float32, so equality means equality.
INTEGERS = st.integers(0, 2**32).map(
    lambda seed: np.random.default_rng(seed).integers(-1000, 1001, 2000).astype(np.float32)
)
QUICK = settings(deadline=None, max_examples=20)


def sketch_of(values, sketch_format=FORMAT):
    sketch = CountSketch(sketch_format)
    sketch.encode(values)
    return sketch


@QUICK
@given(INTEGERS, INTEGERS)
def test_merging_gives_the_sketch_of_the_sum(a, b):
    merged = sketch_of(a)
    merged += sketch_of(b)
    assert np.array_equal(merged.table, sketch_of(a + b).table)


@QUICK
@given(INTEGERS, st.integers(-8, 8))
def test_sketch_of_a_multiple_is_the_multiple_of_the_sketch(a, factor):
    assert np.array_equal(sketch_of(a * factor).table, sketch_of(a).table * factor)


def test_linear_to_rounding_on_any_values(rng):
    a, b = rng.standard_normal((2, 2000)).astype(np.float32)
    merged = sketch_of(a)
    merged.merge(sketch_of(b))
    assert np.allclose(merged.table, sketch_of(a + b).table, rtol=0, atol=1e-5)


@QUICK
@given(INTEGERS, st.lists(st.integers(0, 2000), max_size=8), st.randoms(use_true_random=False))
def test_slices_may_come_cut_anyhow_and_in_any_order(values, cuts, random):
    edges = sorted({0, 2000, *cuts})
    slices = list(itertools.pairwise(edges))
    random.shuffle(slices)
    sketch = CountSketch(FORMAT)
    for start, stop in slices:
        sketch.encode(values[start:stop], start)
    assert np.array_equal(sketch.table, sketch_of(values).table)


@QUICK
@given(INTEGERS, st.integers(0, 2**32))
def test_sparse_encoding_in_any_order_equals_dense(values, seed):
    order = np.random.default_rng(seed).permutation(2000)
    sketch = CountSketch(FORMAT)
    sketch.encode_sparse(order, values[order])
    assert np.array_equal(sketch.table, sketch_of(values).table)


def test_repeated_indices_are_all_added():
    twice, once = CountSketch(FORMAT), CountSketch(FORMAT)
    twice.encode_sparse(np.array([7, 7, 3]), np.array([1, 2, 5], np.float32))
    once.encode_sparse(np.array([3, 7]), np.array([5, 3], np.float32))
    assert np.array_equal(twice.table, once.table)


def test_threads_change_nothing(rng):
    values = rng.standard_normal(2000).astype(np.float32)
    results = []
    for threads in (1, 2, 7):
        set_num_threads(threads)
        assert get_num_threads() == threads
        sketch = sketch_of(values)
        indices, estimates = sketch.heavy_hitters(300)
        results.append((sketch.table.tobytes(), indices.tobytes(), estimates.tobytes()))
    assert results[0] == results[1] == results[2]


def test_heavy_hitters_break_ties_to_the_lowest_index_and_fill_up():
    sketch = CountSketch(FORMAT)
    indices, values = sketch.heavy_hitters(4)
    assert indices.tolist() == [0, 1, 2, 3] and values.tolist() == [0, 0, 0, 0]
    sketch.encode_sparse(np.array([1999, 1000]), np.array([2, -2], np.float32))
    indices, values = sketch.heavy_hitters(2)
    assert indices.tolist() == [1000, 1999] and values.tolist() == [-2, 2]
    assert sketch.heavy_hitters(1)[0].tolist() == [1000]
    assert sketch.heavy_hitters(4)[0].tolist() == [0, 1, 1000, 1999]
    assert sketch.heavy_hitters(2000)[0].tolist() == list(range(2000))


def test_torch_and_numpy_tables_agree_and_results_keep_their_kind(rng):
    values = rng.standard_normal(2000).astype(np.float32)
    in_numpy = sketch_of(values)
    table = torch.zeros(FORMAT.table_shape)
    in_torch = CountSketch(FORMAT, table)
    in_torch.encode(torch.from_numpy(values))
    assert in_torch.table is table and table.abs().sum() > 0
    assert np.array_equal(table.numpy(), in_numpy.table)
    indices, estimates = in_torch.heavy_hitters(5)
    assert isinstance(indices, torch.Tensor) and indices.dtype == torch.int64
    assert isinstance(estimates, torch.Tensor) and estimates.dtype == torch.float32
    assert np.array_equal(indices.numpy(), in_numpy.heavy_hitters(5)[0])
    assert torch.equal(in_torch.estimate(indices), estimates)
    assert isinstance(in_torch.copy().table, torch.Tensor)
    in_torch += in_numpy
    assert np.array_equal(table.numpy(), 2 * in_numpy.table)


def test_copy_is_independent_and_zero_clears():
    sketch = sketch_of(np.ones(2000, np.float32))
    duplicate = sketch.copy()
    sketch.zero_()
    assert not sketch.table.any() and duplicate.table.any()
    assert duplicate.format == sketch.format


@pytest.mark.parametrize("table", [np.zeros((3, 256), np.float32), torch.zeros(3, 256)])
def test_pickled_and_deeply_copied_sketches_still_work(table):
    sketch = CountSketch(FORMAT, table)
    for duplicate in (copy.deepcopy(sketch), pickle.loads(pickle.dumps(sketch))):
        duplicate.encode(np.ones(2000, np.float32))
        assert abs(duplicate.table).sum() > 0 and abs(sketch.table).sum() == 0
        assert type(duplicate.table) is type(table) and duplicate.format == FORMAT


def test_empty_slices_and_index_lists_are_fine():
    sketch = CountSketch(FORMAT)
    sketch.encode(np.empty(0, np.float32), 2000)
    sketch.encode_sparse(np.empty(0, np.int64), np.empty(0, np.float32))
    assert not sketch.table.any()
    assert sketch.estimate(np.empty(0, np.int64)).size == 0


def test_largest_dimension_and_seed_work():
    huge = SketchFormat(rows=15, columns=64, seed=2**64 - 1, dimension=2**40)
    sketch = CountSketch(huge)
    sketch.encode(np.ones(70, np.float32), 2**40 - 70)
    sketch.encode_sparse(np.array([2**40 - 1]), np.ones(1, np.float32))
    assert np.abs(sketch.table).sum() > 0


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 4}, r"rows=4: expected an odd number"),
        ({"rows": 0}, r"rows=0"),
        ({"rows": 17}, r"rows=17.* 1 to 15"),
        ({"rows": 3.0}, r"rows=3.0: expected an integer, got float"),
        ({"rows": True}, r"rows=True"),
        ({"columns": 100}, r"columns=100: expected a positive multiple of 64.* 128"),
        ({"columns": 0}, r"columns=0.* 64"),
        ({"columns": -64}, r"columns=-64"),
        ({"columns": 1 << 38}, r"columns=274877906944.*below 2\^38$"),
        ({"seed": -1}, r"seed=-1"),
        ({"seed": 1 << 64}, r"seed=18446744073709551616"),
        ({"dimension": 0}, r"dimension=0"),
        ({"dimension": (1 << 40) + 1}, r"dimension=1099511627777"),
        ({"dimension": "10"}, r"dimension='10': expected an integer"),
    ],
)
def test_impossible_formats_are_refused(change, message):
    fields = {"rows": 5, "columns": 128, "seed": 0, "dimension": 10} | change
    with pytest.raises(ConfigError, match=message):
        SketchFormat(**fields)


def test_format_takes_numpy_integers_and_knows_its_shape():
    sketch_format = SketchFormat(
        rows=np.int32(5), columns=np.int64(BLOCK), seed=np.uint64(2**64 - 1), dimension=1
    )
    assert sketch_format.table_shape == (5, 64) and type(sketch_format.rows) is int
    assert sketch_format.version == 1


@pytest.mark.parametrize("field", ["rows", "columns", "seed", "dimension"])
def test_merge_refuses_another_format_and_names_both_values(field):
    values = {"rows": 3, "columns": 256, "seed": 42, "dimension": 2000}
    others = {"rows": 5, "columns": 320, "seed": 43, "dimension": 2001}
    other = CountSketch(SketchFormat(**(values | {field: others[field]})))
    with pytest.raises(WireFormatError, match=f"{field} {values[field]} and {others[field]}"):
        CountSketch(FORMAT).merge(other)


def test_merge_refuses_itself_and_what_is_no_sketch():
    sketch = sketch_of(np.ones(2000, np.float32))
    before = sketch.table.copy()
    for same in (sketch, CountSketch(FORMAT, sketch.table)):
        with pytest.raises(WireFormatError, match="with itself"):
            sketch += same
    with pytest.raises(InputTypeError, match="expected a CountSketch, got ndarray"):
        sketch.merge(before)
    assert np.array_equal(sketch.table, before)


WRONG_VALUES = [
    (np.zeros(10), r"float64; convert with a.astype\(np.float32\)"),
    (np.zeros(10, np.float16), "float16; convert"),
    (np.zeros(10, np.complex64), "complex64; sketch the real view"),
    (np.zeros(10, ">f4"), "expected float32, got >f4"),
    (np.zeros(10, np.int64), "int64"),
    (np.zeros(20, np.float32)[::2], "not contiguous"),
    (np.zeros((5, 2), np.float32), r"1 dimension.*\(5, 2\).*reshape"),
    ([0.0], "NumPy array or a torch CPU tensor, got list"),
    (torch.zeros(10, dtype=torch.float64), "float64"),
    (torch.zeros(10, dtype=torch.bfloat16), r"bfloat16.*t.to\(torch.float32\)"),
    (torch.zeros(10, dtype=torch.complex64), "complex64.*view_as_real"),
    (torch.zeros(20)[::2], "not contiguous"),
    (torch.zeros(10).to_sparse(), "sparse.*encode_sparse"),
    (torch.zeros(10, device="meta"), r"on device meta.*t.cpu\(\)"),
    (torch.zeros(10, requires_grad=True), r"requires a gradient.*t.detach\(\)"),
]


@pytest.mark.parametrize(("values", "message"), WRONG_VALUES)
def test_wrong_values_are_refused_with_the_way_out(values, message):
    sketch = CountSketch(FORMAT)
    with pytest.raises(InputTypeError, match=f"values.*{message}"):
        sketch.encode(values)
    with pytest.raises(InputTypeError, match=f"values.*{message}"):
        sketch.encode_sparse(np.arange(10), values)
    assert not sketch.table.any()


def test_values_may_be_misaligned_never(rng):
    raw = np.frombuffer(b"\0" * 41, np.uint8)[1:].view(np.float32)
    with pytest.raises(InputTypeError, match="not contiguous"):
        CountSketch(FORMAT).encode(raw)


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        (np.zeros((3, 256)), InputTypeError, "table: expected float32, got float64"),
        (np.zeros((3, 320), np.float32), ConfigError, r"\(3, 320\).*\(3, 256\)"),
        (np.zeros(768, np.float32), InputTypeError, "2 dimension"),
        (np.zeros((256, 3), np.float32).T, InputTypeError, "not contiguous"),
        (np.frombuffer(bytes(3072), np.float32).reshape(3, 256), InputTypeError, "read-only"),
        (torch.zeros(3, 256, requires_grad=True), InputTypeError, "requires a gradient"),
        (torch.zeros(3, 256, device="meta"), InputTypeError, "on device meta"),
    ],
)
def test_wrong_tables_are_refused(table, error, message):
    with pytest.raises(error, match=message):
        CountSketch(FORMAT, table)


@pytest.mark.parametrize("offset", [-1, 1991, 2**63])
def test_slices_outside_the_vector_are_refused(offset):
    with pytest.raises(ConfigError, match=f"10 values at offset={offset} .*dimension 2000"):
        CountSketch(FORMAT).encode(np.zeros(10, np.float32), offset)


def test_counts_and_offsets_must_be_integers():
    sketch = CountSketch(FORMAT)
    with pytest.raises(ConfigError, match=r"offset=1\.5: expected an integer, got float"):
        sketch.encode(np.zeros(1, np.float32), 1.5)
    with pytest.raises(ConfigError, match=r"k=2\.0: expected an integer, got float"):
        sketch.heavy_hitters(2.0)
    sketch.encode(np.ones(1, np.float32), np.int64(7))
    assert sketch.heavy_hitters(np.int32(1))[0].tolist() == [7]


@pytest.mark.parametrize("index", [-1, 2000, 2**62, -(2**63)])
def test_indices_outside_the_vector_are_refused(index):
    sketch = CountSketch(FORMAT)
    indices = np.array([5, index])
    with pytest.raises(ConfigError, match=rf"{index}.*expected 0 to 1999"):
        sketch.encode_sparse(indices, np.ones(2, np.float32))
    with pytest.raises(ConfigError, match=rf"{index}.*expected 0 to 1999"):
        sketch.estimate(indices)


def test_wrong_indices_are_refused():
    sketch = CountSketch(FORMAT)
    with pytest.raises(InputTypeError, match=r"indices: expected int64, got int32.*np.int64"):
        sketch.estimate(np.zeros(2, np.int32))
    with pytest.raises(InputTypeError, match="indices is not contiguous"):
        sketch.estimate(np.zeros(4, np.int64)[::2])
    with pytest.raises(ConfigError, match="2 indices for 3 values"):
        sketch.encode_sparse(np.zeros(2, np.int64), np.zeros(3, np.float32))


@pytest.mark.parametrize("k", [0, -1, 2001])
def test_heavy_hitters_refuse_impossible_k(k):
    with pytest.raises(ConfigError, match=f"k={k}: expected 1 to 2000"):
        CountSketch(FORMAT).heavy_hitters(k)


@pytest.mark.parametrize("spoiler", [np.nan, np.inf, -np.inf])
def test_heavy_hitters_refuse_a_table_that_is_not_finite(spoiler):
    sketch = CountSketch(FORMAT)
    sketch.table[2, 100] = spoiler
    with pytest.raises(WireFormatError, match="NaN or infinity"):
        sketch.heavy_hitters(3)


def test_heavy_hitters_accept_the_largest_finite_cells():
    sketch = CountSketch(FORMAT)
    sketch.table[:] = np.finfo(np.float32).max
    assert sketch.heavy_hitters(3)[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, None])
def test_impossible_thread_counts_are_refused(threads):
    with pytest.raises(ConfigError, match="threads="):
        set_num_threads(threads)
    assert backend.get_num_threads() >= 1
