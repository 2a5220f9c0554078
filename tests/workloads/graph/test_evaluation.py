"""Measures of embeddings, against scikit-learn and by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from gsdist.workloads.graph.evaluation import (
    clustering,
    f1_scores,
    in_the_plane,
    linear_classifier,
    link_scores,
)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_f1_agrees_with_another_implementation(pairs):
    predicted, labels = torch.tensor(pairs).T
    found = f1_scores(predicted, labels, 4)
    for average in ("macro", "micro"):
        expected = f1_score(labels, predicted, labels=range(4), average=average, zero_division=0)
        assert found[f"{average}_f1"] == pytest.approx(expected)


def test_link_scores_by_hand():
    # Of six pairs of link and other, the link is ahead in five.
    found = link_scores(torch.tensor([0.9, 0.4]), torch.tensor([0.5, 0.1, -3.0]))
    assert found["auc"] == pytest.approx(5 / 6)
    assert found["ap"] == pytest.approx((1 + 2 / 3) / 2)


def separated(classes=3, each=40):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat(each)
    return 10 * torch.eye(classes)[labels] + torch.randn(
        classes * each, classes, generator=generator
    ), labels


def test_separated_classes_are_found_and_mixed_ones_are_not():
    embeddings, labels = separated()
    assert clustering(embeddings, labels, 3) == {"nmi": 1.0, "ari": 1.0}
    found = linear_classifier(embeddings, labels, shares=(0.2,))
    assert found == {"svm_macro_f1_20": 1.0, "svm_micro_f1_20": 1.0}
    mixed = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    assert clustering(embeddings, mixed, 3)["nmi"] < 0.1
    assert linear_classifier(embeddings, mixed, shares=(0.5,))["svm_micro_f1_50"] < 0.6


def test_the_picture_shows_at_most_so_many_points_and_keeps_groups_apart():
    embeddings, labels = separated()
    picture = in_the_plane(embeddings, labels)
    assert picture["group"] == labels.tolist()
    points = torch.tensor([picture["x"], picture["y"]]).T
    centres = torch.stack([points[labels == label].mean(0) for label in range(3)])
    assert torch.equal(torch.cdist(points, centres).argmin(1), labels)
    assert len(in_the_plane(torch.rand(1100, 2), torch.zeros(1100))["x"]) == 1000
