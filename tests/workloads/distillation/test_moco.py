"""Momentum contrast between peers: the queue, the key encoders, the loss, and who gets gradients."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from gsdist.errors import ConfigError
from gsdist.workloads.distillation import MclMocoConfig, MclMocoWorkload
from gsdist.workloads.distillation.key_queue import KeyQueue
from gsdist.workloads.distillation.mcl_moco import queue_terms

SMALL = {"model": "resnet8-narrow", "data": "digits", "norm": "group"}


def _unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def test_the_oldest_keys_are_replaced_first():
    queue = KeyQueue(2, 5, 3)
    assert queue.labels.tolist() == [-1] * 5
    first, second = _unit(2, 3, 3, seed=1).float(), _unit(2, 4, 3, seed=2).float()
    queue.update(first, torch.tensor([0, 1, 2]))
    queue.update(second, torch.tensor([3, 4, 5, 6]))
    assert queue.labels.tolist() == [5, 6, 2, 3, 4]
    assert torch.equal(queue.keys[:, 2], first[:, 2])
    assert torch.equal(queue.keys[:, [3, 4, 0, 1]], second)
    many = _unit(2, 7, 3, seed=3).float()
    queue.update(many, torch.arange(10, 17))
    assert sorted(queue.labels.tolist()) == [12, 13, 14, 15, 16]
    assert queue.nearest(1, many[1, 4:]).tolist() == [14, 15, 16]
    assert not any(parameter.requires_grad for parameter in queue.parameters())


def test_terms_are_cross_entropies_over_the_own_key_and_the_queue():
    queries, keys = list(_unit(2, 3, 4, seed=1)), list(_unit(2, 3, 4, seed=2))
    queue = list(_unit(2, 6, 4, seed=3))
    found = queue_terms(queries, keys, queue, contrast_temperature=0.2, temperature=3.0)
    scores = {
        (a, b): [
            torch.stack([queries[a][n] @ key / 0.2 for key in (keys[b][n], *queue[b])])
            for n in range(3)
        ]
        for a in range(2)
        for b in range(2)
    }

    def hard(a, b):
        return -sum((row.exp()[0] / row.exp().sum()).log() for row in scores[a, b]) / 3

    def soft(student, teacher):
        total = 0.0
        for own, target in zip(scores[student], scores[teacher], strict=True):
            p, q = (target / 3).softmax(0), (own / 3).softmax(0)
            total += 9 * (p * (p / q).log()).sum() / 3
        return total

    torch.testing.assert_close(found["vanilla"], hard(0, 0) + hard(1, 1))
    torch.testing.assert_close(found["interactive"], hard(0, 1) + hard(1, 0))
    torch.testing.assert_close(found["soft_vanilla"], soft((0, 0), (1, 1)) + soft((1, 1), (0, 0)))
    torch.testing.assert_close(
        found["soft_interactive"], soft((0, 1), (1, 0)) + soft((1, 0), (0, 1))
    )


def test_equal_similarities_cost_what_guessing_costs():
    same = _unit(1, 4).expand(3, 4)
    found = queue_terms(
        [same] * 2, [same] * 2, [same.repeat(2, 1)] * 2, contrast_temperature=0.07, temperature=3.0
    )
    assert found["vanilla"].item() == pytest.approx(2 * math.log(1 + 6))
    assert found["interactive"].item() == pytest.approx(2 * math.log(1 + 6))
    assert found["soft_vanilla"].item() == pytest.approx(0, abs=1e-12)


def test_query_encoders_learn_and_key_encoders_follow():
    workload = MclMocoWorkload(MclMocoConfig(queue_length=16, key_momentum=0.75, **SMALL))
    model = workload.build_model()
    data = workload.training_dataset()
    images, labels = torch.stack([data[i][0] for i in range(6)]), data.all_labels()[:6]
    batch = workload.prepare_batch(
        (images, labels), training=True, generator=torch.Generator().manual_seed(0)
    )
    assert not torch.equal(batch[0], batch[1])
    parts = workload.loss(model, batch)
    assert set(parts) == {"vanilla", "interactive", "soft_vanilla", "soft_interactive"}
    parts.total.backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {name for name, _ in model.named_parameters() if name.startswith("networks.")}

    before = copy.deepcopy(model.key_networks)
    for parameter in model.networks.parameters():
        parameter.data.add_(1.0)
    workload.after_step(model, 1)
    for old, key, query in zip(
        *(module.parameters() for module in (before, model.key_networks, model.networks)),
        strict=True,
    ):
        torch.testing.assert_close(key, 0.75 * old + 0.25 * query)
    assert model.queue.labels[:6].tolist() == labels.tolist()
    with torch.no_grad():
        expected = F.normalize(before[1](batch[1]), dim=1)
    torch.testing.assert_close(model.queue.keys[1, :6], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queue_length": 0}, "queue_length must be at least 1, got 0"),
        ({"key_momentum": 1.0}, r"key_momentum must be in \[0, 1\), got 1.0"),
        ({"label_smoothing": 0.1}, "label_smoothing=0.1, but no labels are learnt"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        MclMocoConfig(**options)
