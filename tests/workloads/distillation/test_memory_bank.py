"""Memory banks: what is chosen from them, what an update moves, and the losses with them."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gsdist.errors import ConfigError
from gsdist.workloads.distillation import MclMemoryBankConfig
from gsdist.workloads.distillation.mcl_memory_bank import bank_terms
from gsdist.workloads.distillation.memory_bank import ContrastChoice, MemoryBank


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 4), min_size=6, max_size=30).filter(lambda y: len(set(y)) > 1))
def test_an_image_gets_itself_one_of_its_class_and_others(classes):
    labels = torch.tensor(classes)
    choose = ContrastChoice(labels, negatives=20)
    indices = torch.arange(len(labels))
    chosen = choose(indices, labels, torch.Generator().manual_seed(0))
    assert chosen.shape == (len(labels), 22)
    assert torch.equal(chosen[:, 0], indices)
    assert torch.equal(labels[chosen[:, 1]], labels)
    alone = labels.bincount()[labels] == 1
    assert torch.equal(chosen[:, 1] == indices, alone)
    assert not (labels[chosen[:, 2:]] == labels[:, None]).any()


def test_every_candidate_is_chosen_as_often():
    labels = torch.tensor([0, 1, 0, 0, 1, 2])
    choose = ContrastChoice(labels, negatives=1)
    many = torch.full((6000,), 2)
    chosen = choose(many, labels[many], torch.Generator().manual_seed(1))
    positives = chosen[:, 1].bincount(minlength=6)
    negatives = chosen[:, 2].bincount(minlength=6)
    # Five standard deviations of a binomial count.
    for counts, expected in ((positives[[0, 3]], 3000), (negatives[[1, 4, 5]], 2000)):
        assert counts.sum() == 6000
        assert ((counts - expected).abs() < 5 * math.sqrt(6000 / 4)).all()


def test_an_update_moves_visited_slots_alone_to_norm_1_and_the_first_of_equals_counts():
    bank = MemoryBank(6, 4)
    before = bank.slots.clone()
    assert before.abs().max() <= math.sqrt(3 / 4)
    vectors = F.normalize(torch.randn(3, 4), dim=1)
    bank.update(torch.tensor([4, 1, 4]), vectors)
    torch.testing.assert_close(bank.slots[[1, 4]].norm(dim=1), torch.ones(2))
    for slot, vector in ((4, vectors[0]), (1, vectors[1])):
        expected = F.normalize(before[slot] + vector, dim=0)
        torch.testing.assert_close(bank.slots[slot], expected)
    assert torch.equal(bank.slots[[0, 2, 3, 5]], before[[0, 2, 3, 5]])
    assert not bank.slots.requires_grad


def test_bank_terms_are_cross_entropies_over_what_is_remembered():
    torch.manual_seed(2)
    own = [F.normalize(torch.randn(3, 5, dtype=torch.float64), dim=1) for _ in range(2)]
    kept = [F.normalize(torch.randn(3, 7, 5, dtype=torch.float64), dim=2) for _ in range(2)]
    found = bank_terms(own, kept, contrast_temperature=0.2, temperature=3.0)
    vanilla, interactive = 0.0, 0.0
    for a in range(2):
        for image in range(3):
            scores = [(own[a][image] @ kept[a][image, k] / 0.2).exp() for k in range(1, 7)]
            vanilla -= (scores[0] / sum(scores)).log() / 3
            other = [(own[a][image] @ kept[1 - a][image, k] / 0.2).exp() for k in range(7)]
            interactive -= sum((other[k] / sum(other)).log() / 2 for k in (0, 1)) / 3
    torch.testing.assert_close(found["vanilla"], vanilla)
    torch.testing.assert_close(found["interactive"], interactive)
    alike = bank_terms([own[0]] * 2, [kept[0]] * 2, contrast_temperature=0.2, temperature=3.0)
    assert alike["soft_vanilla"].item() == pytest.approx(0, abs=1e-12)
    assert alike["soft_interactive"].item() == pytest.approx(0, abs=1e-12)


def test_negatives_are_needed():
    with pytest.raises(ConfigError, match="negatives must be at least 1, got 0"):
        MclMemoryBankConfig(negatives=0)
