"""Compute the loss terms of networks with branches, and measure those networks.

Source: Yang et al., Hierarchical Self-supervised Augmented Knowledge Distillation, 2021, equations 3 to
9. All weights are 1.

| paper | here |
| --- | --- |
| p, q_l | logits of the network, of branch l, for each rotated view |
| y, k | label, joint label of class and rotation |
| M | 4 rotations; the mean over the views of a batch is the paper's 1/M |
"""

import torch.nn.functional as F
from torch import Tensor, nn

from gsdist.data import ImageFormat
from gsdist.models import Normalization, build_staged_model
from gsdist.models.branches import BranchedNetwork, BranchedOutput
from gsdist.models.cifar_resnet import Shortcut
from gsdist.workloads.classification import classification_sums
from gsdist.workloads.distillation.divergence import divergence
from gsdist.workloads.distillation.rotations import ROTATIONS, joint_labels, rotated_views

__all__ = [
    "BranchMeasures",
    "build_branched",
    "cross_entropy",
    "imitation",
    "joint_cross_entropy",
    "joint_metric_names",
    "joint_metric_sums",
    "part_of",
]


class BranchMeasures:
    """Make a workload measure a network with branches; to be inherited from before other classes."""

    def part_of(self, parameter: str) -> str:
        """Tell network and branches apart."""
        return part_of(parameter)

    def metric_names(self, model: nn.Module) -> tuple[str, ...]:
        """List what `metric_sums` measures."""
        assert isinstance(model, BranchedNetwork)
        return ("accuracy", "loss", *joint_metric_names(len(model.branches)))

    def metric_sums(self, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Measure the network on unrotated images, as classification does, and every branch."""
        answer: BranchedOutput = model(rotated_views(images))
        upright = classification_sums(answer.logits[::ROTATIONS], labels)
        return upright | joint_metric_sums(answer, labels)


def part_of(parameter: str) -> str:
    """Say whether a parameter is of the "backbone" or of the "branches", which only training needs."""
    return "branches" if "branches" in parameter.split(".") else "backbone"


def build_branched(
    name: str,
    image_format: ImageFormat,
    *,
    norm: Normalization,
    shortcut: Shortcut = "projection",
    frozen_backbone: bool = False,
) -> BranchedNetwork:
    """Build a network with branches for the joint labels of this data, fresh weights.

    Raises:
        ConfigError: a network that does not show its stages.
    """
    backbone = build_staged_model(
        name,
        num_classes=image_format.num_classes,
        in_channels=image_format.channels,
        norm=norm,
        shortcut=shortcut,
    )
    return BranchedNetwork(
        backbone,
        ROTATIONS * image_format.num_classes,
        frozen_backbone=frozen_backbone,
        norm=norm,
    )


def cross_entropy(answer: BranchedOutput, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Compute the network's mean cross-entropy on the unrotated views alone.

    Takes the answer to the rotated views of images with `labels` `(N,)`.
    """
    return F.cross_entropy(answer.logits[::ROTATIONS], labels, label_smoothing=smoothing)


def joint_cross_entropy(answer: BranchedOutput, labels: Tensor) -> Tensor:
    """Add up the branches' mean cross-entropies with the joint labels, over all views."""
    targets = joint_labels(labels)
    terms = [F.cross_entropy(logits, targets) for logits in answer.branches]
    return sum(terms[1:], terms[0])


def imitation(
    student: BranchedOutput, teacher: BranchedOutput, temperature: float
) -> dict[str, Tensor]:
    """Compute the "divergence" of the networks and the "branch_divergence", branch from like branch.

    Both are means over all views; the teacher gets no gradient.
    """
    terms = [
        divergence(own, target, temperature)
        for own, target in zip(student.branches, teacher.branches, strict=True)
    ]
    return {
        "divergence": divergence(student.logits, teacher.logits, temperature),
        "branch_divergence": sum(terms[1:], terms[0]),
    }


def joint_metric_names(branches: int) -> list[str]:
    """List what `joint_metric_sums` measures on a network with so many branches."""
    return [f"branch{number + 1}_joint_accuracy" for number in range(branches)]


def joint_metric_sums(answer: BranchedOutput, labels: Tensor) -> dict[str, Tensor]:
    """Sum up, per image, the share of views whose joint label each branch finds."""
    targets = joint_labels(labels)
    shares = [(logits.argmax(1) == targets).sum() / ROTATIONS for logits in answer.branches]
    return dict(zip(joint_metric_names(len(shares)), shares, strict=True))
