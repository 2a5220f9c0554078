"""Distil relations, not values: correlation of predictions within rows and within columns (DIST).

Source: Huang et al., Knowledge Distillation from a Stronger Teacher, 2022, equations 6 to 9.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from gsdist.workloads.contract import LossParts
from gsdist.workloads.distillation.checks import require_not_negative
from gsdist.workloads.distillation.divergence import at_least_float32
from gsdist.workloads.distillation.student import StudentConfig, StudentWorkload

__all__ = ["DistConfig", "DistWorkload", "relation_losses"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DistConfig(StudentConfig):
    """Choose student, teacher, data and the two weights of the relations."""

    temperature: float = 4.0
    """Divides the logits that are compared."""
    between_weight: float = 2.0
    """Weight of the relation between the classes of one image."""
    within_weight: float = 2.0
    """Weight of the relation between the images of the batch for one class."""

    def __post_init__(self) -> None:
        """Check names, ranges and the teacher's file.

        Raises:
            ConfigError: an unknown name or a value out of range.
            CheckpointError: the teacher's file cannot be read or has another hash.
        """
        StudentConfig.__post_init__(self)
        require_not_negative(self, "between_weight", "within_weight")


class DistWorkload(StudentWorkload):
    """Train a student on labels and on the relations in a frozen teacher's predictions.

    Args:
        config: student, teacher, data and weights.

    Raises:
        ConfigError: no file of the teacher's weights.
    """

    name = "dist"
    config: DistConfig

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> LossParts:
        """Compute "cross_entropy", and the weighted "between_classes" and "within_classes"."""
        images, labels = batch
        config = self.config
        logits = model(images)
        between, within = relation_losses(logits, self.ask_teacher(images), config.temperature)
        return LossParts(
            {
                "cross_entropy": F.cross_entropy(
                    logits, labels, label_smoothing=config.label_smoothing
                ),
                "between_classes": config.between_weight * between,
                "within_classes": config.within_weight * within,
            }
        )


def relation_losses(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Compute T^2 times one minus the mean correlation of rows, and that of columns, of predictions.

    Takes logits `(N, C)`, returns two scalars. The second compares images of this rank only.
    """
    answer = F.softmax(at_least_float32(student) / temperature, dim=1)
    target = F.softmax(at_least_float32(teacher.detach()) / temperature, dim=1)
    scale = temperature**2
    return scale * _distance(answer, target), scale * _distance(answer.T, target.T)


def _distance(first: Tensor, second: Tensor) -> Tensor:
    """Return one minus the mean of the rows' Pearson correlations."""
    first = first - first.mean(1, keepdim=True)
    second = second - second.mean(1, keepdim=True)
    return 1 - F.cosine_similarity(first, second, dim=1).mean()
