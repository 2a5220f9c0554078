"""top_k and compensate as reducers call them."""

import numpy as np
import pytest
import torch

from gsdist.errors import ConfigError, InputTypeError
from gsdist.sketch.select import compensate, top_k


def test_top_k_takes_the_largest_magnitudes_and_the_lowest_of_equal_ones():
    values = np.array([1, -3, 2, 3, -2, 0, 3], np.float32)
    assert top_k(values, 2).tolist() == [1, 3]
    assert top_k(values, 4).tolist() == [1, 2, 3, 6]
    assert top_k(values, 7).tolist() == list(range(7))


def test_top_k_gives_tensors_for_tensors():
    found = top_k(torch.tensor([0.0, -5.0, 1.0]), 1)
    assert isinstance(found, torch.Tensor) and found.dtype == torch.int64
    assert found.tolist() == [1]


@pytest.mark.parametrize("k", [0, -3, 4])
def test_top_k_refuses_impossible_k(k):
    with pytest.raises(ConfigError, match=f"k={k}: expected 1 to 3"):
        top_k(np.zeros(3, np.float32), k)


def test_top_k_refuses_half_precision():
    with pytest.raises(InputTypeError, match="bfloat16"):
        top_k(torch.zeros(3, dtype=torch.bfloat16), 1)


def test_compensate_adds_what_the_formulas_say():
    """e = 1, u_old = 10, g = 0.5 * 8 = 4, m = 0.5: u = 9."""
    one, ten, eight = (torch.full((5,), value) for value in (1.0, 10.0, 8.0))
    out = torch.empty(5)
    assert compensate(out, one, eight, scale=0.5)
    assert out.tolist() == [5.0] * 5
    assert compensate(out, one, eight, scale=0.5, momentum=ten, momentum_factor=0.5)
    assert out.tolist() == [10.0] * 5
    assert compensate(out, one, eight, scale=0.5, momentum=ten, momentum_factor=0.5, nesterov=True)
    assert out.tolist() == [1 + 4 + 0.5 * 9] * 5
    assert compensate(out, None, eight)
    assert out.tolist() == [8.0] * 5
    assert (one == 1).all() and (ten == 10).all() and (eight == 8).all()


def test_compensate_may_write_over_an_input():
    residual = np.arange(200, dtype=np.float32)
    assert compensate(residual, residual, np.ones(200, np.float32))
    assert np.array_equal(residual, np.arange(200) + 1)


def test_compensate_writes_slices_in_place():
    whole = torch.zeros(300)
    assert compensate(whole[37:137], None, torch.ones(100))
    assert whole.sum() == 100 and whole[37] == 1 and whole[136] == 1


def test_compensate_reports_overflow_of_the_sum():
    big = np.full(100, 3e38, np.float32)
    assert not compensate(np.empty(100, np.float32), big, big)


def test_compensate_refuses_what_does_not_fit():
    five, six = np.zeros(5, np.float32), np.zeros(6, np.float32)
    with pytest.raises(ConfigError, match="gradient has 6 values, out has 5"):
        compensate(five, five, six)
    with pytest.raises(ConfigError, match=r"momentum_factor=0.9.*momentum is None"):
        compensate(five, five, five, momentum_factor=0.9)
    with pytest.raises(InputTypeError, match="gradient"):
        compensate(five, five, None)
    with pytest.raises(InputTypeError, match="out is read-only"):
        compensate(np.frombuffer(bytes(20), np.float32), five, five)
