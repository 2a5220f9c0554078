"""The contract: loss parts add up and refuse what cannot be minimised; the optional parts do nothing."""

import pytest
import torch
from torch import nn

from gsdist.errors import ConfigError, InputTypeError
from gsdist.workloads import LossParts, Workload


class _Minimal(Workload):
    name = "minimal"
    primary_metric = "score"

    def build_model(self):
        return nn.Linear(1, 1)

    def training_dataset(self):
        return []

    def evaluation_dataset(self):
        return []

    def prepare_batch(self, batch, *, training, generator=None):
        return batch

    def loss(self, model, batch):
        return LossParts({"value": model(batch).sum()})

    def evaluate(self, model, batches):
        return {"score": (0.0, 0.0)}


def test_total_is_the_differentiable_sum_of_the_parts():
    weight = torch.tensor(3.0, requires_grad=True)
    parts = LossParts({"fit": weight**2, "penalty": 4 * weight})
    assert dict(parts) == {"fit": torch.tensor(9.0), "penalty": torch.tensor(12.0)}
    assert parts.total.item() == 21.0
    parts.total.backward()
    assert weight.grad.item() == 10.0


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ({}, ConfigError, "at least one term"),
        ({"fit": torch.zeros(2)}, ConfigError, "'fit' must be a scalar, got shape \\(2,\\)"),
        ({"fit": 1.5}, InputTypeError, "'fit' must be a tensor, got float"),
    ],
)
def test_loss_parts_refuse_what_cannot_be_minimised(parts, error, message):
    with pytest.raises(error, match=message):
        LossParts(parts)


def test_optional_parts_do_nothing_by_default():
    workload = _Minimal()
    model = workload.build_model()
    before = [parameter.clone() for parameter in model.parameters()]
    workload.after_step(model, 1)
    assert workload.replicated_loss(model) is None
    assert workload.coordinate_mask(model) is None
    assert workload.layout_change(model, 1) is None
    assert workload.final_measures(model) is None
    assert workload.selection_metric is None
    assert all(map(torch.equal, before, model.parameters()))


def test_a_workload_without_its_essentials_cannot_be_made():
    class Incomplete(_Minimal):
        loss = Workload.loss

    with pytest.raises(TypeError, match="loss"):
        Incomplete()
