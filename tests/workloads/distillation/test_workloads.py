"""Distillation workloads: where gradients go, what stays frozen, shapes, metrics, refusals."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gsdist.errors import CheckpointError, ConfigError
from gsdist.models import build_model, build_staged_model
from gsdist.models.branches import BranchedNetwork, strip_branches
from gsdist.workloads.distillation import (
    DistConfig,
    DistWorkload,
    DkdConfig,
    DkdWorkload,
    HsakdStudentConfig,
    HsakdStudentWorkload,
    HsakdTeacherConfig,
    HsakdTeacherWorkload,
    HssakdOnlineConfig,
    HssakdOnlineWorkload,
    KdConfig,
    KdWorkload,
    LinearTransferConfig,
    LinearTransferWorkload,
    MclConfig,
    MclWorkload,
    hierarchical,
)
from gsdist.workloads.distillation.rotations import rotated_views

SMALL = {"data": "digits", "norm": "group", "augment": False}


def _batch(workload, size=4):
    data = workload.training_dataset()
    images = torch.stack([data[index][0] for index in range(size)])
    labels = torch.tensor([data[index][1] for index in range(size)])
    return workload.prepare_batch((images, labels), training=False)


def _reached(module):
    """Name the parameters whose gradient is not zero."""
    return {name for name, p in module.named_parameters() if p.grad is not None and p.grad.any()}


def _names(module, *prefixes):
    return {name for name, _ in module.named_parameters() if name.startswith(prefixes)}


def _student(path, **options):
    config = HsakdStudentConfig(
        model="resnet8-narrow", teacher="resnet8-narrow", teacher_weights=path, **SMALL | options
    )
    return HsakdStudentWorkload(config)


# ---- where gradients go ---------------------------------------------------------------------------------


def test_a_joint_teacher_trains_every_parameter():
    workload = HsakdTeacherWorkload(HsakdTeacherConfig(model="resnet8-narrow", **SMALL))
    model = workload.build_model()
    parts = workload.loss(model, _batch(workload))
    parts.total.backward()
    assert set(parts) == {"cross_entropy", "joint_cross_entropy"}
    assert _reached(model) == set(dict(model.named_parameters()))


def test_a_frozen_teacher_trains_its_branches_alone(tmp_path):
    plain = build_staged_model("resnet8-narrow", num_classes=10, in_channels=1)
    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    options = SMALL | {"norm": "batch"}
    workload = HsakdTeacherWorkload(
        HsakdTeacherConfig(
            model="resnet8-narrow", backbone_weights=tmp_path / "plain.pt", **options
        )
    )
    model = workload.build_model()
    parts = workload.loss(model, _batch(workload))
    parts.total.backward()
    assert list(parts) == ["joint_cross_entropy"]
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    assert _reached(model) == _names(model, "branches")
    for name, value in plain.state_dict().items():
        assert torch.equal(value, model.backbone.state_dict()[name]), name


def test_divergence_reaches_no_branch_and_a_branchs_only_its_own_stages(branched_teacher):
    workload = _student(branched_teacher)
    model = workload.build_model()
    views = rotated_views(_batch(workload)[0])
    target = workload.ask_teacher(views)

    hierarchical.imitation(model(views), target, 3.0)["divergence"].backward()
    assert _reached(model) == _names(model, "backbone")
    for branch in range(3):
        model.zero_grad()
        answer = model(views)
        only = answer._replace(branches=[answer.branches[branch]])
        taught = target._replace(branches=[target.branches[branch]])
        hierarchical.imitation(only, taught, 3.0)["branch_divergence"].backward()
        stages = tuple(f"backbone.stages.{stage}." for stage in range(branch + 1))
        assert _reached(model) == _names(model, "backbone.stem", *stages, f"branches.{branch}.")


def test_a_teacher_is_left_as_it_was_and_is_no_part_of_the_model(branched_teacher):
    workload = _student(branched_teacher)
    model = workload.build_model()
    before = copy.deepcopy(workload.teacher.state_dict())
    workload.loss(model.train(), _batch(workload)).total.backward()
    assert not workload.teacher.training
    for name, value in workload.teacher.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None and not p.requires_grad for p in workload.teacher.parameters())
    assert not {id(p) for p in workload.teacher.parameters()} & {id(p) for p in model.parameters()}


def test_a_student_step_runs_each_network_once_over_the_four_views(branched_teacher):
    workload = _student(branched_teacher)
    model = workload.build_model()
    images, labels = _batch(workload, 5)
    seen = []
    for network in (model, workload.teacher):
        for module in (network.backbone.stem, *network.branches):
            module.register_forward_hook(
                lambda module, inputs, output: seen.append((id(module), len(output)))
            )
    workload.loss(model, (images, labels)).total.backward()
    assert len(seen) == len(set(seen)) == 8
    assert {size for _, size in seen} == {4 * 5}


def test_building_a_student_draws_the_same_numbers_with_and_without_teacher(branched_teacher):
    torch.manual_seed(3)
    expected = BranchedNetwork(
        build_staged_model("resnet8-narrow", num_classes=10, in_channels=1, norm="group"),
        40,
        norm="group",
    ).state_dict()
    torch.manual_seed(3)
    found = _student(branched_teacher).build_model().state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


@pytest.mark.parametrize(
    "workload",
    [
        HssakdOnlineWorkload(HssakdOnlineConfig(model="resnet8-narrow", **SMALL)),
        MclWorkload(MclConfig(model="resnet8-narrow", **SMALL)),
        MclWorkload(
            MclConfig(
                model="resnet8-narrow", peers=4, shared_stages=1, logit_distillation=True, **SMALL
            )
        ),
    ],
    ids=["hssakd-online", "mcl", "mcl of four"],
)
def test_peers_all_learn_and_are_measured_apart(workload):
    model = workload.build_model()
    images, labels = _batch(workload, 20)
    workload.loss(model, (images, labels)).total.backward()
    assert _reached(model) == set(dict(model.named_parameters()))
    metrics = workload.evaluate(model, [(images, labels)])
    peers = [metrics[name][0] for name in metrics if name.endswith("accuracy") and "peer" in name]
    assert set(metrics) == set(workload.metric_names(model))
    own = [metrics[f"peer{number + 1}_accuracy"][0] for number in range(len(model.networks))]
    assert metrics["accuracy"] == (pytest.approx(sum(own) / len(own)), 20)
    assert len(peers) >= len(own)


# ---- what a student minimises, by hand ------------------------------------------------------------------


def _plain_teacher(tmp_path, **options):
    torch.manual_seed(5)
    teacher = build_model("mlp", num_classes=10, in_channels=1, image_size=8)
    torch.save(teacher.state_dict(), tmp_path / "mlp.pt")
    shared = {"model": "mlp", "data": "digits", "augment": False, "teacher": "mlp"}
    return teacher, shared | {"teacher_weights": tmp_path / "mlp.pt"} | options


@pytest.mark.parametrize("rotations", [False, True])
def test_kd_weighs_labels_and_teacher(tmp_path, rotations):
    teacher, options = _plain_teacher(tmp_path, rotations=rotations)
    workload = KdWorkload(KdConfig(**options))
    model = workload.build_model()
    images, labels = _batch(workload, 6)
    parts = workload.loss(model, (images, labels))
    turned = [images.rot90(k, (2, 3)) for k in range(4 if rotations else 1)]
    by_hand = [
        16 * F.kl_div(
            (model(view) / 4).log_softmax(1), (teacher(view) / 4).softmax(1), reduction="sum"
        ) / len(view)
        for view in turned
    ]  # fmt: skip
    expected = 0.1 * F.cross_entropy(model(images), labels) + 0.9 * sum(by_hand) / len(by_hand)
    torch.testing.assert_close(parts.total, expected)


@pytest.mark.parametrize(
    ("kind", "config", "silent"),
    [
        (DkdWorkload, DkdConfig, ("target_divergence", "other_divergence")),
        (DistWorkload, DistConfig, ("between_classes", "within_classes")),
    ],
)
def test_a_student_equal_to_its_teacher_has_labels_left_to_learn(tmp_path, kind, config, silent):
    teacher, options = _plain_teacher(tmp_path)
    workload = kind(config(**options))
    images, labels = _batch(workload, 6)
    parts = workload.loss(teacher, (images, labels))
    for name in silent:
        assert parts[name].item() == pytest.approx(0, abs=1e-4)
    torch.testing.assert_close(parts["cross_entropy"], F.cross_entropy(teacher(images), labels))


# ---- measures -------------------------------------------------------------------------------------------


def test_branches_are_measured_on_all_views_and_the_network_on_the_first(branched_teacher):
    workload = _student(branched_teacher)
    model = workload.build_model().eval()
    images, labels = _batch(workload, 10)
    metrics = workload.evaluate(model, [(images[:7], labels[:7]), (images[7:], labels[7:])])
    with torch.no_grad():
        hits = (model.backbone(images).argmax(1) == labels).sum().item()
        right = [0, 0, 0]
        for rotation in range(4):
            answer = model(images.rot90(rotation, (2, 3)))
            for branch, logits in enumerate(answer.branches):
                right[branch] += (logits.argmax(1) == 4 * labels + rotation).sum().item()
    assert metrics["accuracy"] == (hits, 10)
    for branch in range(3):
        assert metrics[f"branch{branch + 1}_joint_accuracy"] == (
            pytest.approx(right[branch] / 4),
            10,
        )
    assert set(workload.evaluate(model, [])) == set(metrics)


def test_a_stripped_network_answers_as_before():
    model = BranchedNetwork(build_staged_model("resnet8-narrow", num_classes=5), 20)
    model(torch.randn(8, 3, 16, 16))  # moves the running statistics
    stripped = build_model("resnet8-narrow", num_classes=5)
    state = strip_branches(model.state_dict())
    assert not any("branch" in name for name in state)
    stripped.load_state_dict(state)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(stripped.eval()(images), model.eval()(images).logits)
    with pytest.raises(ConfigError, match=r"no name begins with 'backbone.'.*stem"):
        strip_branches(state)


# ---- transfer ------------------------------------------------------------------------------------------


def test_linear_transfer_trains_a_new_classifier_alone(tmp_path):
    other = build_staged_model("resnet8-narrow", num_classes=3, in_channels=1)
    other(torch.randn(8, 1, 8, 8))  # moves the running statistics
    torch.save(other.state_dict(), tmp_path / "other.pt")
    config = LinearTransferConfig(
        model="resnet8-narrow", data="digits", weights=tmp_path / "other.pt"
    )
    workload = LinearTransferWorkload(config)
    model = workload.build_model().train()
    images, labels = _batch(workload)
    workload.loss(model, (images, labels)).total.backward()
    assert _reached(model) == {"network.classifier.weight", "network.classifier.bias"}
    kept = {k: v for k, v in other.state_dict().items() if not k.startswith("classifier")}
    found = model.network.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in kept.items())
    torch.save({"stem": torch.ones(1)}, tmp_path / "wrong.pt")
    with pytest.raises(CheckpointError, match=r"(?s)wrong.pt does not hold the weights.*compact"):
        LinearTransferWorkload(
            LinearTransferConfig(
                model="resnet8-narrow", data="digits", weights=tmp_path / "wrong.pt"
            )
        ).build_model()
    with pytest.raises(ConfigError, match="weights is not set"):
        LinearTransferWorkload(LinearTransferConfig(model="resnet8-narrow"))


# ---- refusals -------------------------------------------------------------------------------------------


def test_the_teachers_hash_becomes_a_setting_and_is_checked(branched_teacher):
    config = _student(branched_teacher).config
    assert len(config.teacher_sha256) == 64
    _student(branched_teacher, teacher_sha256=config.teacher_sha256)
    with pytest.raises(CheckpointError, match=r"teacher.pt has SHA-256 .*, expected 00"):
        _student(branched_teacher, teacher_sha256="00")


def test_files_that_are_no_teacher_are_refused(tmp_path, branched_teacher):
    with pytest.raises(ConfigError, match=r"teacher_weights is not set.*--save-model"):
        _student(None)
    with pytest.raises(CheckpointError, match=r"cannot read the weights .*absent.*--save-model"):
        _student(tmp_path / "absent")
    (tmp_path / "text").write_text("nothing")
    with pytest.raises(CheckpointError, match=r"text is not a file of weights"):
        _student(tmp_path / "text").build_model()
    torch.save([1], tmp_path / "list")
    with pytest.raises(CheckpointError, match=r"list is not a file of weights.*by name"):
        _student(tmp_path / "list").build_model()
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"does not hold the weights of this BranchedNetwork"):
        _student(tmp_path / "other").build_model()


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (HsakdTeacherConfig, {"model": "mlp"}, "'mlp' does not show its stages"),
        (HsakdStudentConfig, {"teacher": "mlp"}, "'mlp' does not show its stages"),
        (HssakdOnlineConfig, {"temperature": 0}, "temperature must be positive, got 0"),
        (KdConfig, {"temperature": -1}, "temperature must be positive, got -1"),
        (KdConfig, {"label_weight": -1}, "label_weight must be at least 0, got -1"),
        (KdConfig, {"teacher": "resnet21"}, "unknown model 'resnet21'"),
        (DkdConfig, {"other_weight": -1}, "other_weight must be at least 0, got -1"),
        (DistConfig, {"within_weight": -1}, "within_weight must be at least 0, got -1"),
        (MclConfig, {"peers": 1}, "peers must be at least 2, got 1"),
        (MclConfig, {"images_per_class": 1}, "images_per_class must be at least 2, got 1"),
        (MclConfig, {"contrast_temperature": 0}, "contrast_temperature must be positive, got 0"),
        (MclConfig, {"vanilla_weight": -1}, "vanilla_weight must be at least 0, got -1"),
    ],
)
def test_settings_out_of_range_are_refused(config, options, message):
    with pytest.raises(ConfigError, match=message):
        config(**options)


def test_networks_that_do_not_fit_are_refused(tmp_path):
    workload = MclWorkload(MclConfig(model="resnet8-narrow", shared_stages=3, **SMALL))
    with pytest.raises(ConfigError, match=r"shared_stages must be below the 3 stages"):
        workload.build_model()
    small = {"data": "digits", "augment": False}
    torch.manual_seed(0)
    vgg = HsakdTeacherWorkload(HsakdTeacherConfig(model="mobilenetv2-half", **small)).build_model()
    torch.save(vgg.state_dict(), tmp_path / "four.pt")
    config = HsakdStudentConfig(
        model="resnet8-narrow",
        teacher="mobilenetv2-half",
        teacher_weights=tmp_path / "four.pt",
        **small,
    )
    with pytest.raises(
        ConfigError, match=r"'resnet8-narrow' has 3 stages and teacher 'mobilenetv2-half' 4"
    ):
        HsakdStudentWorkload(config).build_model()
