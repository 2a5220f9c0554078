"""The best weights are those of the first highest value, whatever comes later, and survive a restart."""

import torch
from torch import nn

from gsdist.training.selection import BestWeights


def model_with(value: float) -> nn.Linear:
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, value)
    return model


def offered(best: BestWeights, values: list[float]) -> nn.Linear:
    """Offer a model whose weight is the number of the evaluation; return the last one."""
    model = nn.Linear(1, 1)
    for number, value in enumerate(values):
        with torch.no_grad():
            model.weight.fill_(number)
        best.offer({"score": value, "other": -value}, model)
    return model


def test_the_first_highest_wins_and_is_not_a_view_of_later_weights() -> None:
    best = BestWeights("score")
    model = offered(best, [0.1, 0.7, 0.3, 0.7])
    assert best.restore(model) == {"score": 0.7, "other": -0.7}
    assert model.weight.item() == 1


def test_without_a_metric_the_model_stays_as_it_is() -> None:
    best = BestWeights(None)
    model = offered(best, [0.1, 0.7, 0.3])
    assert best.restore(model) == {}
    assert model.weight.item() == 2


def test_what_is_remembered_survives_a_restart() -> None:
    first, second = BestWeights("score"), BestWeights("score")
    offered(first, [0.1, 0.7])
    second.load_state_dict(first.state_dict())
    model = offered(second, [0.6])
    assert second.restore(model)["score"] == 0.7
    assert model.weight.item() == 1
