"""Both backends give the same bits, and those the format asks for."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gsdist.sketch import reference
from tests.unit.sketch import oracle

EXAMPLES = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SHAPES = st.tuples(st.sampled_from([1, 3, 5, 7, 9, 11, 13, 15]), st.integers(1, 40)).map(
    lambda pair: (pair[0], pair[1] * 64)
)
SEEDS = st.integers(0, 2**64 - 1)


@pytest.fixture(params=["portable", "avx2", "avx512"])
def level(request, native):
    """Each SIMD level this build and processor have, in turn."""
    from gsdist import _native

    info = _native.build_info()
    if request.param not in info["simd_levels"]:
        pytest.skip(f"this processor or build has no {request.param}")
    _native.use_simd_level(request.param)
    yield request.param
    _native.use_simd_level(info["simd_level"])


def normals(seed, size):
    return np.random.default_rng(seed % 2**32).standard_normal(size).astype(np.float32)


def same_bits(a, b):
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("offset", [0, 5, 63, 64, 2**40 - 200])
def test_dense_encoding_equals_the_oracle(kernels, offset):
    values = normals(1, 200)
    expected = oracle.table(3, 192, 9, list(enumerate(values, start=offset)))
    table = np.zeros((3, 192), np.float32)
    kernels.encode_dense(table, 9, values, offset, 1)
    assert same_bits(table, expected)


def test_sparse_encoding_equals_the_oracle(kernels, rng):
    indices, values = rng.integers(0, 2**40, 100), normals(2, 100)
    indices[10:20] = indices[0]  # repeated: every value counts
    table = np.zeros((5, 128), np.float32)
    kernels.encode_sparse(table, 2**64 - 1, indices, values, 1)
    expected = oracle.table(5, 128, 2**64 - 1, list(zip(indices.tolist(), values, strict=True)))
    assert same_bits(table, expected)


def test_estimates_equal_the_oracle(kernels, rng):
    for rows in (1, 3, 5, 7, 15):
        table = rng.standard_normal((rows, 320)).astype(np.float32)
        indices = rng.integers(0, 2**40, 60)
        out = np.empty(60, np.float32)
        kernels.estimate(table, 11, indices, out, 1)
        assert out.tolist() == [oracle.estimate(table, 11, int(index)) for index in indices]


@EXAMPLES
@given(SHAPES, SEEDS, st.integers(0, 2**39), st.integers(0, 1500), st.sampled_from([1, 2, 3, 8]))
def test_encode_dense_same_bits(native, level, shape, seed, offset, count, threads):
    table = normals(seed, shape[0] * shape[1]).reshape(shape)
    expected, values = table.copy(), normals(seed + 1, count)
    native.encode_dense(table, seed, values, offset, threads)
    reference.encode_dense(expected, seed, values, offset, 1)
    assert same_bits(table, expected)


@EXAMPLES
@given(SHAPES, SEEDS, st.lists(st.integers(0, 2**40 - 1), max_size=300), st.sampled_from([1, 2, 5]))
def test_encode_sparse_and_estimate_same_bits(native, level, shape, seed, indices, threads):
    where = np.array(indices, np.int64)
    values = normals(seed, where.size)
    table, expected = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    native.encode_sparse(table, seed, where, values, threads)
    reference.encode_sparse(expected, seed, where, values, 1)
    assert same_bits(table, expected)
    out, expected_out = np.empty_like(values), np.empty_like(values)
    native.estimate(table, seed, where, out, threads)
    reference.estimate(expected, seed, where, expected_out, 1)
    assert np.array_equal(out, expected_out)  # a median of zeros may be +0 or -0


@EXAMPLES
@given(
    SHAPES,
    SEEDS,
    st.integers(1, 5000),
    st.sampled_from(["normal", "integers", "sparse", "zero", "tiny"]),
    st.data(),
)
def test_heavy_hitters_same_indices(native, level, shape, seed, dimension, kind, data):
    k = data.draw(st.one_of(st.just(1), st.just(dimension), st.integers(1, dimension)))
    vector = normals(seed, dimension)
    if kind == "integers":  # many ties
        vector = np.round(vector)
    elif kind == "sparse":
        vector *= np.arange(dimension) % 97 == 0
    elif kind == "zero":
        vector[:] = 0
    elif kind == "tiny":  # denormal numbers have an order too
        vector = (vector * 1e-39).astype(np.float32)
    table = np.zeros(shape, np.float32)
    reference.encode_dense(table, seed, vector, 0, 1)
    expected = reference.heavy_hitters(table, seed, dimension, k, 1)
    for threads in (1, 3):
        found = native.heavy_hitters(table, seed, dimension, k, threads)
        assert np.array_equal(found, expected)


def test_heavy_hitters_are_the_top_k_of_all_estimates(kernels, rng, monkeypatch):
    """Against a stable full sort, with chunks of the reference smaller than the vector."""
    monkeypatch.setattr(reference, "_CHUNK", 700)
    table = np.round(rng.standard_normal((3, 64 * 7)) * 2).astype(np.float32)
    everything = np.arange(5000)
    estimates = np.empty(5000, np.float32)
    reference.estimate(table, 5, everything, estimates, 1)
    order = np.argsort(-np.abs(estimates), kind="stable")
    for k in (1, 2, 63, 64, 500, 4999, 5000):
        found = kernels.heavy_hitters(table, 5, 5000, k, 1)
        assert found.tolist() == sorted(order[:k].tolist())


@EXAMPLES
@given(
    st.lists(st.floats(-100, 100, width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0]), min_size=1),
    st.integers(1, 70),
    st.data(),
)
def test_top_k_same_indices(native, level, pattern, repeats, data):
    values = np.array(pattern * repeats, np.float32)
    k = data.draw(st.one_of(st.just(1), st.just(values.size), st.integers(1, values.size)))
    order = np.argsort(-np.abs(values), kind="stable")
    expected = sorted(order[:k].tolist())
    assert reference.top_k(values, k, 1).tolist() == expected
    for threads in (1, 3):
        assert native.top_k(values, k, threads).tolist() == expected


@pytest.mark.parametrize("spoiler", [np.nan, np.inf, -np.inf])
def test_top_k_survives_values_that_are_not_finite(kernels, spoiler):
    values = normals(3, 1000)
    values[::7] = spoiler
    found = kernels.top_k(values, 200, 1)
    assert found.size == 200 and (np.diff(found) > 0).all()
    assert found[0] >= 0 and found[-1] < 1000


@EXAMPLES
@given(
    st.integers(0, 700),
    SEEDS,
    st.floats(-4, 4, width=32),
    st.floats(0, 1, width=32),
    st.sampled_from(["plain", "momentum", "nesterov"]),
    st.booleans(),
)
def test_compensate_same_bits(native, level, count, seed, scale, factor, kind, has_residual):
    residual, momentum, gradient = (normals(seed + i, count) for i in range(3))
    arguments = (
        residual if has_residual else None,
        None if kind == "plain" else momentum,
        gradient,
        scale,
        factor,
        kind == "nesterov",
    )
    out, expected = np.empty((2, count), np.float32)
    assert native.compensate(out, *arguments, 2)
    assert reference.compensate(expected, *arguments, 1)
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("spoiler", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 17, 63, 64, 128, 129])
def test_compensate_reports_what_is_not_finite(kernels, spoiler, at):
    gradient = np.ones(130, np.float32)
    out = np.empty_like(gradient)
    assert kernels.compensate(out, None, None, gradient, 1.0, 0.0, False, 1)
    gradient[at] = spoiler
    assert not kernels.compensate(out, None, None, gradient, 1.0, 0.0, False, 1)
    gradient[at] = 3e38  # finite, but the scaled one is not
    assert not kernels.compensate(out, None, None, gradient, 2.0, 0.0, False, 1)
