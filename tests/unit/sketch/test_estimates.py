"""What the estimates promise: no bias, and the error bounds that docs/sketch-format.md states."""

import numpy as np
import pytest

from gsdist.sketch import CountSketch, SketchFormat

COLUMNS = 512
SEEDS = 256


def vectors():
    rng = np.random.default_rng(5)
    normal = rng.standard_normal(8192)
    heavy_tailed = rng.standard_t(1.5, 8192)
    one_block = np.zeros(8192)
    one_block[1280:1344] = 1.0
    # 127 = COLUMNS / 4 - 1 equal entries: any collision exceeds the bound, and each coordinate has
    # one with probability just below 1/4. Nothing comes closer to the bound.
    spread = np.zeros(8192)
    spread[: 127 * 64 : 64] = 1.0
    blocks = np.zeros(8192)
    blocks[: 2 * 64 - 1] = 1.0
    return {
        name: vector.astype(np.float32)
        for name, vector in {
            "normal": normal,
            "heavy-tailed": heavy_tailed,
            "one block": one_block,
            "worst case, spread": spread,
            "worst case, blocks": blocks,
        }.items()
    }


VECTORS = vectors()


def errors(vector, rows, queried):
    """Return estimate - value for every seed: shape (seeds, coordinates)."""
    found = []
    for seed in range(SEEDS):
        sketch = CountSketch(
            SketchFormat(rows=rows, columns=COLUMNS, seed=seed * 2**56 + seed, dimension=8192)
        )
        sketch.encode(vector)
        found.append(sketch.estimate(queried) - vector[queried])
    return np.array(found)


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize(("rows", "allowed"), [(1, 0.25), (5, 0.104)])
def test_large_errors_are_rare(name, rows, allowed):
    """|error| > 2 ||v||_2 / sqrt(c): at most 1/4 per row, 0.104 for the median of five."""
    vector = VECTORS[name]
    large = np.abs(errors(vector, rows, np.arange(8192))) > 2 * np.linalg.norm(vector) / np.sqrt(
        COLUMNS
    )
    assert large.mean() <= allowed
    # Per coordinate, too: 256 seeds leave a standard deviation of 0.027 at 1/4.
    assert large.mean(axis=0).max() <= allowed + 5 * np.sqrt(allowed * (1 - allowed) / SEEDS)


def test_worst_case_vector_is_nearly_as_bad_as_the_bound():
    """Shows that the tests above would notice a hash that collides too often."""
    vector = VECTORS["worst case, spread"]
    large = np.abs(errors(vector, 1, np.arange(8192))) > 2 * np.linalg.norm(vector) / np.sqrt(
        COLUMNS
    )
    assert 0.19 < large.mean() < 0.25


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("rows", [1, 5])
def test_estimates_are_unbiased(name, rows):
    queried = np.arange(0, 8192, 37)
    found = errors(VECTORS[name], rows, queried)
    spread = found.std(axis=0) / np.sqrt(SEEDS)
    assert (np.abs(found.mean(axis=0)) <= 5 * spread + 1e-6).all()


@pytest.mark.parametrize("name", VECTORS)
def test_errors_have_the_variance_of_a_count_sketch(name):
    """E error^2 = (||v||^2 - what shares the block) / c for one row."""
    vector = VECTORS[name].astype(np.float64)
    found = errors(VECTORS[name], 1, np.arange(8192)).astype(np.float64)
    others = (vector**2).sum() - (vector**2).reshape(-1, 64).sum(axis=1).repeat(64)
    assert np.isclose((found**2).mean(), others.mean() / COLUMNS, rtol=0.15)


@pytest.mark.parametrize("name", VECTORS)
def test_norm_estimate_is_near_the_norm(name):
    vector = VECTORS[name]
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    found = []
    for seed in range(50):
        sketch = CountSketch(SketchFormat(rows=5, columns=COLUMNS, seed=seed, dimension=8192))
        sketch.encode(vector)
        found.append(sketch.l2_estimate() / norm)
    assert np.mean(np.abs(np.array(found) - 1) < 0.2) > 0.9


def test_all_heavy_coordinates_of_a_sparse_vector_are_found(rng):
    """A vector with ten entries in a table of 5 x 8,192 cells comes back exactly."""
    vector = np.zeros(100_000, np.float32)
    where = np.sort(rng.choice(100_000, 10, replace=False))
    vector[where] = rng.standard_normal(10) + 3
    sketch = CountSketch(SketchFormat(rows=5, columns=8192, seed=1, dimension=100_000))
    sketch.encode(vector)
    indices, values = sketch.heavy_hitters(10)
    assert np.array_equal(indices, where)
    assert np.array_equal(values, vector[where])
