import pytest
import torch

from benchmarks.directions import METHODS, History


def test_a_gradient_of_one_direction_is_one_coefficient() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(12, 1, generator=generator), torch.randn(1, 20, generator=generator)
    history = History(12, 20)
    for turn in (True, False):
        history.follow(left @ right, turn=turn)
    kept = history.kept(left @ right * 3.0, 1 / 240)
    assert kept["coefficients in the basis, chosen now"] == pytest.approx(1, abs=1e-4)
    assert kept["coefficients in the basis, chosen before"] == pytest.approx(1, abs=1e-4)
    # one number pays for 1 / (12 + 20) of a rank and 1 / 20 of a row
    assert kept["low rank, chosen now"] == pytest.approx(1 / 32, abs=1e-4)
    assert kept["rows of the basis, chosen before"] == pytest.approx(1 / 20, abs=1e-4)
    largest = (left @ right).square().max() / (left @ right).square().sum()
    assert kept["coordinates, chosen now"] == pytest.approx(float(largest))


def test_all_numbers_keep_all_energy() -> None:
    history = History(6, 4)
    history.follow(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), turn=True)
    kept = history.kept(torch.randn(6, 4, generator=torch.Generator().manual_seed(2)), 1.0)
    for name in METHODS[:2] + METHODS[3:]:
        assert kept[name] == pytest.approx(1, abs=1e-5)
