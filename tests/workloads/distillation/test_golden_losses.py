"""Losses against values worked out by hand or by the authors' code, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr

from gsdist.models.branches import BranchedOutput
from gsdist.workloads.distillation import hierarchical
from gsdist.workloads.distillation.contrast import ContrastRows, contrast_terms, supervised_contrast
from gsdist.workloads.distillation.dist import relation_losses
from gsdist.workloads.distillation.divergence import divergence
from gsdist.workloads.distillation.dkd import decoupled_divergences
from gsdist.workloads.distillation.hssakd_online import mutual_terms
from gsdist.workloads.distillation.mutual_contrast import imitation_of_mean
from gsdist.workloads.distillation.rotations import joint_labels, rotated_views


def _double(*rows):
    return torch.tensor(rows, dtype=torch.float64)


# ---- rotations ------------------------------------------------------------------------------------------


def test_joint_labels_count_rotations_within_a_class():
    assert joint_labels(torch.tensor([0, 2])).tolist() == [0, 1, 2, 3, 8, 9, 10, 11]


def test_views_turn_counter_clockwise_and_stay_together():
    image = torch.tensor([[[1, 2], [3, 4]]])
    views = rotated_views(torch.stack([image, image + 4]))
    assert views.flatten(1).tolist() == [
        [1, 2, 3, 4], [2, 4, 1, 3], [4, 3, 2, 1], [3, 1, 4, 2],
        [5, 6, 7, 8], [6, 8, 5, 7], [8, 7, 6, 5], [7, 5, 8, 6],
    ]  # fmt: skip


# ---- divergence -----------------------------------------------------------------------------------------

STUDENT, TEACHER = _double([1, 1, 0]), _double([2, 0, -1])


@pytest.mark.parametrize(("temperature", "expected"), [(1, 0.379738), (3, 0.495841), (4, 0.491104)])
def test_divergence_has_the_teacher_as_target_and_the_factor_t_squared(temperature, expected):
    assert divergence(STUDENT, TEACHER, temperature).item() == pytest.approx(expected, abs=1e-6)


def test_divergence_is_the_mean_over_rows():
    student = torch.cat([STUDENT, _double([0, 0, 0])])
    teacher = torch.cat([TEACHER, _double([0, 1, 0])])
    assert divergence(student, teacher, 3).item() == pytest.approx(0.307004, abs=1e-6)


def test_divergence_has_the_gradient_of_the_formula_and_none_for_the_teacher():
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    divergence(student, teacher, 3).backward()
    torch.testing.assert_close(student.grad, _double([-0.4903, 0.2856, 0.2047]), atol=5e-5, rtol=0)
    assert teacher.grad is None


def test_a_hot_divergence_becomes_a_squared_distance():
    hot = divergence(STUDENT, TEACHER, 1000).item()
    assert hot == pytest.approx(0.44472, abs=5e-6)
    difference = (STUDENT - STUDENT.mean()) - (TEACHER - TEACHER.mean())
    assert hot == pytest.approx(difference.square().sum().item() / 6, rel=1e-3)


@pytest.mark.parametrize(
    "compare",
    [
        lambda student, teacher: divergence(student, teacher, 2.0),
        lambda student, teacher: decoupled_divergences(student, teacher, torch.arange(3), 2.0)[0],
        lambda student, teacher: relation_losses(student, teacher, 2.0)[1],
    ],
    ids=["divergence", "dkd", "dist"],
)
def test_half_precision_is_compared_in_float32(compare):
    student, teacher = torch.randn(2, 3, 8).to(torch.bfloat16)
    found = compare(student, teacher)
    assert found.dtype == torch.float32
    assert torch.equal(found, compare(student.float(), teacher.float()))


# ---- HSAKD and HSSAKD -----------------------------------------------------------------------------------

CLASSES_2 = torch.tensor([0])
TAUGHT = BranchedOutput(_double([1, 0], [0, 0], [0, 1], [0.5, 0]), [torch.zeros(4, 8).double()])
TEACHING = BranchedOutput(
    _double([2, 0], [1, 0], [0, 0], [1, 1]), [2 * torch.eye(4, 8, dtype=torch.float64)]
)


def test_student_loss_of_hsakd():
    terms = hierarchical.imitation(TAUGHT, TEACHING, 3.0)
    cross_entropy = hierarchical.cross_entropy(TAUGHT, CLASSES_2).item()
    assert cross_entropy == pytest.approx(0.313262, abs=1e-6)
    assert terms["divergence"].item() == pytest.approx(0.098653, abs=1e-6)
    assert terms["branch_divergence"].item() == pytest.approx(0.298445, abs=1e-6)
    total = cross_entropy + sum(term.item() for term in terms.values())
    assert total == pytest.approx(0.710360, abs=1e-6)


def test_teacher_loss_of_hsakd():
    assert hierarchical.cross_entropy(TEACHING, CLASSES_2).item() == pytest.approx(
        0.126928, abs=1e-6
    )
    joint = hierarchical.joint_cross_entropy(TEACHING, CLASSES_2).item()
    assert joint == pytest.approx(0.666468, abs=1e-6)


@pytest.mark.parametrize(("branches", "expected"), [(3, 22.58), (4, 28.57)])
def test_uniform_answers_cost_what_guessing_costs(branches, expected):
    answer = BranchedOutput(torch.zeros(8, 100), [torch.zeros(8, 400)] * branches)
    labels = torch.tensor([3, 99])
    total = hierarchical.cross_entropy(answer, labels) + hierarchical.joint_cross_entropy(
        answer, labels
    )
    assert total.item() == pytest.approx(math.log(100) + branches * math.log(400), rel=1e-6)
    assert total.item() == pytest.approx(expected, abs=0.005)
    mutual = mutual_terms(answer, answer, labels, 3.0)
    assert sum(term.item() for term in mutual.values()) == pytest.approx(2 * total.item())


def test_equal_networks_have_nothing_to_imitate():
    answer = BranchedOutput(torch.randn(8, 5), [torch.randn(8, 20), torch.randn(8, 20)])
    assert [term.item() for term in hierarchical.imitation(answer, answer, 3.0).values()] == [0, 0]


def _random_answer(seed, *, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_(
            requires_grad
        )

    return BranchedOutput(draw(8, 5), [draw(8, 20), draw(8, 20)])


def test_mutual_terms_treat_both_peers_alike():
    first, second, labels = _random_answer(0), _random_answer(1), torch.tensor([1, 4])
    forth, back = (mutual_terms(*pair, labels, 3.0) for pair in ((first, second), (second, first)))
    for name, term in forth.items():
        torch.testing.assert_close(term, back[name])


def test_a_peer_that_is_imitated_gets_no_gradient():
    first, second = _random_answer(0, requires_grad=True), _random_answer(1, requires_grad=True)
    sum(hierarchical.imitation(first, second, 3.0).values()).backward()
    assert first.logits.grad.any()
    assert second.logits.grad is None
    assert all(branch.grad is None for branch in second.branches)


# ---- MCL ------------------------------------------------------------------------------------------------

PAIRS = torch.tensor([0, 0, 1, 1])


def _on_the_circle(*degrees):
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


FIRST, SECOND = _on_the_circle(0, 30, 90, 120), _on_the_circle(10, 50, 100, 170)


def _terms(embeddings, labels, tau, **options):
    rows = ContrastRows.of_labels(labels, labels, 0)
    terms = contrast_terms(
        embeddings, embeddings, rows, contrast_temperature=tau, temperature=3.0, **options
    )
    return {name: term.item() for name, term in terms.items()}


@pytest.mark.parametrize(
    ("tau", "expected"),
    [
        (0.1, (0.841365, 1.859316, 2.592444, 8.944215)),
        (0.5, (0.931015, 1.086998, 0.183209, 0.650206)),
    ],
)
def test_contrasts_are_those_of_the_authors_code(tau, expected):
    found = _terms([FIRST, SECOND], PAIRS, tau)
    names = ("vanilla", "interactive", "soft_vanilla", "soft_interactive")
    assert [found[name] for name in names] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("tau", "expected"), [(0.1, (2.878848, 10.403698)), (0.5, (0.169176, 0.655125))]
)
def test_soft_terms_can_leave_self_similarity_out(tau, expected):
    found = _terms([FIRST, SECOND], PAIRS, tau, soft_self_similarity=False)
    assert found["soft_vanilla"] == pytest.approx(expected[0], abs=1e-6)
    assert found["soft_interactive"] == pytest.approx(expected[1], abs=1e-6)


def test_equal_embeddings_cost_what_guessing_costs():
    embedding = F.normalize(torch.ones(128, 16, dtype=torch.float64), dim=1)
    found = _terms([embedding, embedding], torch.arange(128) // 2, 0.1)
    assert found["vanilla"] == pytest.approx(9.688374, abs=1e-6)
    assert found["interactive"] == pytest.approx(2 * math.log(127), abs=1e-9)
    assert found["soft_vanilla"] == pytest.approx(0, abs=1e-12)
    assert found["soft_interactive"] == pytest.approx(0, abs=1e-12)


@settings(deadline=None, max_examples=24)
@given(st.permutations(range(4)))
def test_contrasts_depend_on_neither_the_order_of_peers_nor_that_of_images(order):
    expected = _terms([FIRST, SECOND], PAIRS, 0.1)
    assert _terms([SECOND, FIRST], PAIRS, 0.1) == pytest.approx(expected)
    order = torch.tensor(order)
    assert _terms([FIRST[order], SECOND[order]], PAIRS[order], 0.1) == pytest.approx(expected)


def test_soft_contrasts_are_those_of_every_ordered_pair():
    third = _on_the_circle(5, 80, 100, 300)
    three = _terms([FIRST, SECOND, third], PAIRS, 0.5)
    twos = [_terms(pair, PAIRS, 0.5) for pair in ([FIRST, SECOND], [FIRST, third], [SECOND, third])]
    for name in ("interactive", "soft_vanilla", "soft_interactive"):
        assert three[name] == pytest.approx(sum(two[name] for two in twos))
    assert three["vanilla"] == pytest.approx(sum(two["vanilla"] for two in twos) / 2)


def test_an_anchor_without_positives_counts_as_zero():
    similarities = torch.randn(2, 3, dtype=torch.float64)
    positive = torch.tensor([[False, True, False], [False, False, False]])
    found = supervised_contrast(similarities, positive, torch.ones(2, 3, dtype=torch.bool))
    expected = -similarities[0].log_softmax(0)[1] / 2
    torch.testing.assert_close(found, expected)


def test_two_peers_both_imitate_their_mean_and_of_three_only_the_last():
    logits = [_random_answer(seed).logits for seed in range(3)]
    two = sum(divergence(own, (logits[0] + logits[1]) / 2, 3.0) for own in logits[:2])
    torch.testing.assert_close(imitation_of_mean(logits[:2], 3.0), two)
    three = divergence(logits[2], sum(logits) / 3, 3.0)
    torch.testing.assert_close(imitation_of_mean(logits, 3.0), three)


# ---- the methods compared with --------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.floats(0.5, 8.0))
def test_decoupled_parts_make_up_the_whole_divergence(seed, temperature):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 1, 6, generator=generator, dtype=torch.float64) * 3
    label = torch.randint(6, (1,), generator=generator)
    target, other = decoupled_divergences(student, teacher, label, temperature)
    # DKD, equation 6: the part among the others weighs what the teacher leaves to them.
    left = 1 - (teacher / temperature).softmax(1)[0, label]
    whole = divergence(student, teacher, temperature)
    torch.testing.assert_close(target + left[0] * other, whole)


def test_relations_are_pearson_correlations_of_rows_and_columns():
    student, teacher = torch.randn(2, 5, 4, dtype=torch.float64)
    rows, columns = relation_losses(student, teacher, 2.0)
    first, second = (student / 2).softmax(1).numpy(), (teacher / 2).softmax(1).numpy()
    by_row = [pearsonr(a, b).statistic for a, b in zip(first, second, strict=True)]
    by_column = [pearsonr(a, b).statistic for a, b in zip(first.T, second.T, strict=True)]
    assert rows.item() == pytest.approx(4 * (1 - sum(by_row) / 5))
    assert columns.item() == pytest.approx(4 * (1 - sum(by_column) / 4))
