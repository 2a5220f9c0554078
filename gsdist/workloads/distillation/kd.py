"""Distil a teacher's logits: knowledge distillation.

Source: Hinton et al., Distilling the Knowledge in a Neural Network, 2015; weights and temperature as
usual since Tian et al., Contrastive Representation Distillation, 2020.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from gsdist.workloads.contract import LossParts
from gsdist.workloads.distillation.checks import require_not_negative
from gsdist.workloads.distillation.divergence import divergence
from gsdist.workloads.distillation.rotations import ROTATIONS, rotated_views
from gsdist.workloads.distillation.student import StudentConfig, StudentWorkload

__all__ = ["KdConfig", "KdWorkload"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KdConfig(StudentConfig):
    """Choose student, teacher, data and the two weights of the loss."""

    temperature: float = 4.0
    """Divides the logits that are compared."""
    label_weight: float = 0.1
    """Weight of the cross-entropy with the labels."""
    teacher_weight: float = 0.9
    """Weight of the divergence from the teacher."""
    rotations: bool = False
    """Whether to compare on all four rotations of each image; labels count for the first only."""

    def __post_init__(self) -> None:
        """Check names, ranges and the teacher's file.

        Raises:
            ConfigError: an unknown name or a value out of range.
            CheckpointError: the teacher's file cannot be read or has another hash.
        """
        StudentConfig.__post_init__(self)
        require_not_negative(self, "label_weight", "teacher_weight")


class KdWorkload(StudentWorkload):
    """Train a student on labels and on the logits of a frozen teacher.

    Args:
        config: student, teacher, data and weights.

    Raises:
        ConfigError: no file of the teacher's weights.
    """

    name = "kd"
    config: KdConfig

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> LossParts:
        """Compute "cross_entropy" with the labels and "divergence" from the teacher, weighted."""
        images, labels = batch
        config = self.config
        seen = rotated_views(images) if config.rotations else images
        logits = model(seen)
        upright = logits[::ROTATIONS] if config.rotations else logits
        cross_entropy = F.cross_entropy(upright, labels, label_smoothing=config.label_smoothing)
        distance = divergence(logits, self.ask_teacher(seen), config.temperature)
        return LossParts(
            {
                "cross_entropy": config.label_weight * cross_entropy,
                "divergence": config.teacher_weight * distance,
            }
        )
