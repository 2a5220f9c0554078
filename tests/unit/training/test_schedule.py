"""Learning rates against values worked out by hand."""

import pytest
import torch

from gsdist.training import TrainConfig
from gsdist.training.schedule import learning_rate_factor, make_scheduler


def factors(config: TrainConfig, steps: list[int], total_steps: int) -> list[float]:
    return [learning_rate_factor(s, config=config, total_steps=total_steps) for s in steps]


def test_warm_up_rises_linearly_to_the_peak() -> None:
    config = TrainConfig(schedule="constant", lr_warmup_steps=4)
    assert factors(config, [0, 1, 2, 3, 4, 99], 100) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_falls_from_the_peak_to_zero() -> None:
    config = TrainConfig(schedule="cosine", lr_warmup_steps=20)
    expected = [1.0, (1 + 0.5**0.5) / 2, 0.5, 0.0]
    assert factors(config, [20, 40, 60, 100], 100) == pytest.approx(expected, abs=1e-12)


def test_multistep_multiplies_by_its_factor_at_each_milestone() -> None:
    config = TrainConfig(schedule="multistep", milestones=(0.5, 0.75), milestone_factor=0.2)
    expected = [1.0, 1.0, 0.2, 0.04]
    assert factors(config, [0, 49, 50, 75], 100) == pytest.approx(expected)


def test_multistep_divides_by_ten_at_each_milestone() -> None:
    config = TrainConfig(schedule="multistep", milestones=(0.5, 0.75))
    assert factors(config, [49, 50, 74, 75, 99], 100) == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])


def test_scheduler_sets_the_rate_of_the_coming_step() -> None:
    config = TrainConfig(schedule="constant", lr_warmup_steps=2, learning_rate=0.4)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    scheduler = make_scheduler(optimizer, config, total_steps=10)
    seen = []
    for _ in range(3):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx([0.2, 0.4, 0.4])
