"""Distil the target class and the other classes apart: decoupled knowledge distillation.

Source: Zhao et al., Decoupled Knowledge Distillation, 2022, equations 5 to 7; without their warm-up of
the weights over the first epochs.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsdist.workloads.contract import LossParts
from gsdist.workloads.distillation.checks import require_not_negative
from gsdist.workloads.distillation.divergence import at_least_float32, divergence
from gsdist.workloads.distillation.student import StudentConfig, StudentWorkload

__all__ = ["DkdConfig", "DkdWorkload", "decoupled_divergences"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DkdConfig(StudentConfig):
    """Choose student, teacher, data and the two weights of the divergence."""

    temperature: float = 4.0
    """Divides the logits that are compared."""
    target_weight: float = 1.0
    """Weight of the divergence between target and the rest."""
    other_weight: float = 8.0
    """Weight of the divergence among the other classes."""

    def __post_init__(self) -> None:
        """Check names, ranges and the teacher's file.

        Raises:
            ConfigError: an unknown name or a value out of range.
            CheckpointError: the teacher's file cannot be read or has another hash.
        """
        StudentConfig.__post_init__(self)
        require_not_negative(self, "target_weight", "other_weight")


class DkdWorkload(StudentWorkload):
    """Train a student on labels and on the decoupled logits of a frozen teacher.

    Args:
        config: student, teacher, data and weights.

    Raises:
        ConfigError: no file of the teacher's weights.
    """

    name = "dkd"
    config: DkdConfig

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> LossParts:
        """Compute "cross_entropy", and the weighted "target_divergence" and "other_divergence"."""
        images, labels = batch
        config = self.config
        logits = model(images)
        target, other = decoupled_divergences(
            logits, self.ask_teacher(images), labels, config.temperature
        )
        return LossParts(
            {
                "cross_entropy": F.cross_entropy(
                    logits, labels, label_smoothing=config.label_smoothing
                ),
                "target_divergence": config.target_weight * target,
                "other_divergence": config.other_weight * other,
            }
        )


def decoupled_divergences(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Compute the divergence of target against the rest, and that among the other classes.

    Takes logits `(N, C)` and classes `(N,)`; returns two scalars, with the factor T^2.
    """
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    target = divergence(
        _target_against_rest(student / temperature, labels) * temperature,
        _target_against_rest(teacher / temperature, labels) * temperature,
        temperature,
    )
    other = divergence(_others(student, labels), _others(teacher, labels), temperature)
    return target, other


def _target_against_rest(logits: Tensor, labels: Tensor) -> Tensor:
    """Return two logits per row whose softmax is the probability of the target and of the rest."""
    rest = torch.logsumexp(_others(logits, labels), dim=1)
    return torch.stack([logits.gather(1, labels[:, None])[:, 0], rest], dim=1)


def _others(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logits `(N, C - 1)` of all classes but the target."""
    is_other = torch.ones_like(logits, dtype=torch.bool).scatter_(1, labels[:, None], False)
    return logits[is_other].view(len(logits), -1)
