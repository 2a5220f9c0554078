"""The torch operators: registered properly, equal to CountSketch, traceable."""

import numpy as np
import pytest
import torch

from gsdist.errors import ConfigError, InputTypeError
from gsdist.sketch import CountSketch, SketchFormat

OPS = torch.ops.gsdist
DIMENSION = 1000


def table():
    return torch.zeros(3, 128)


CASES = {
    "count_sketch_encode_": lambda: (table(), torch.randn(500), 100, 7, DIMENSION),
    "count_sketch_encode_sparse_": lambda: (
        table(),
        torch.randint(DIMENSION, (50,)),
        torch.randn(50),
        7,
        DIMENSION,
    ),
    "count_sketch_estimate": lambda: (
        torch.randn(3, 128),
        torch.randint(DIMENSION, (50,)),
        7,
        DIMENSION,
    ),
    "count_sketch_heavy_hitters": lambda: (torch.randn(3, 128), 20, 7, DIMENSION),
    "top_k": lambda: (torch.randn(300), 20),
}


@pytest.mark.parametrize("name", CASES)
def test_opcheck_finds_nothing(name):
    torch.manual_seed(0)
    torch.library.opcheck(getattr(OPS, name).default, CASES[name]())


def test_operators_equal_the_class():
    values = torch.randn(DIMENSION, generator=torch.Generator().manual_seed(1))
    seed = 2**64 - 3
    sketch = CountSketch(SketchFormat(rows=3, columns=128, seed=seed, dimension=DIMENSION), table())
    sketch.encode(values)
    sketch.encode_sparse(torch.tensor([4, 4]), torch.ones(2))
    cells = table()
    OPS.count_sketch_encode_(cells, values, 0, seed - 2**64, DIMENSION)
    OPS.count_sketch_encode_sparse_(
        cells, torch.tensor([4, 4]), torch.ones(2), seed - 2**64, DIMENSION
    )
    assert torch.equal(cells, sketch.table)
    indices, estimates = OPS.count_sketch_heavy_hitters(cells, 9, seed - 2**64, DIMENSION)
    expected, expected_estimates = sketch.heavy_hitters(9)
    assert torch.equal(indices, expected) and torch.equal(estimates, expected_estimates)
    found = OPS.count_sketch_estimate(cells, indices, seed - 2**64, DIMENSION)
    assert torch.equal(found, estimates)
    order = np.argsort(-np.abs(values.numpy()), kind="stable")[:9]
    assert OPS.top_k(values, 9).tolist() == sorted(order.tolist())


def test_a_traced_graph_carries_the_operators():
    def round_trip(values):
        cells = torch.zeros(3, 128)
        OPS.count_sketch_encode_(cells, values, 0, 1, DIMENSION)
        return OPS.count_sketch_heavy_hitters(cells, 5, 1, DIMENSION)

    values = torch.randn(DIMENSION, generator=torch.Generator().manual_seed(2))
    compiled = torch.compile(round_trip, backend="eager", fullgraph=True)
    for found, expected in zip(compiled(values), round_trip(values), strict=True):
        assert torch.equal(found, expected)


def test_wrong_arguments_raise_the_usual_errors():
    with pytest.raises(InputTypeError, match=r"table.*requires a gradient"):
        OPS.count_sketch_encode_(table().requires_grad_(), torch.zeros(5), 0, 1, DIMENSION)
    with pytest.raises(ConfigError, match="offset=996"):
        OPS.count_sketch_encode_(table(), torch.zeros(5), 996, 1, DIMENSION)
    with pytest.raises(ConfigError, match="k=0"):
        OPS.top_k(torch.zeros(5), 0)
    with pytest.raises(ConfigError, match="columns=100"):
        OPS.count_sketch_estimate(torch.zeros(3, 100), torch.zeros(1, dtype=torch.int64), 1, 5)
