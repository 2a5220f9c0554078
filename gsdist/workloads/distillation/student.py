"""Hold what all students of a trained teacher share: its settings and the frozen network."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gsdist.errors import ConfigError
from gsdist.models import build_model, check_model
from gsdist.workloads.classification import ClassificationConfig, ClassificationWorkload
from gsdist.workloads.distillation.checks import require_positive
from gsdist.workloads.weights import fix_weights, frozen_network

__all__ = ["StudentConfig", "StudentWorkload"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentConfig(ClassificationConfig):
    """Choose student, teacher and data; `model` is the student."""

    teacher: str = "resnet56"
    """Network of the teacher; for hsakd-student one that shows its stages."""
    teacher_weights: Path | None = None
    """File of the teacher's weights, as --save-model writes it."""
    teacher_sha256: str | None = None
    """What the file's SHA-256 must be; unset: it is computed and becomes part of the settings."""
    temperature: float = 3.0
    """Divides the logits that are compared."""

    def __post_init__(self) -> None:
        """Check names, ranges and the teacher's file.

        Raises:
            ConfigError: an unknown name or a value out of range.
            CheckpointError: the file cannot be read or has another hash.
        """
        ClassificationConfig.__post_init__(self)
        check_model(self.teacher, norm=self.norm)
        require_positive(self, "temperature")
        fix_weights(self, "teacher_weights", "teacher_sha256")


class StudentWorkload(ClassificationWorkload):
    """Classify images with a student that a frozen teacher helps.

    The teacher is no part of the model: it is neither wrapped nor exchanged nor saved.

    Args:
        config: student, teacher and data.

    Raises:
        ConfigError: no file of the teacher's weights.
    """

    config: StudentConfig

    def __init__(self, config: StudentConfig) -> None:
        super().__init__(config)
        if config.teacher_weights is None:
            raise ConfigError(
                "teacher_weights is not set: name the file that "
                "`gsdist train ... --save-model PATH` wrote when the teacher was trained"
            )
        self._weights = config.teacher_weights

    def ask_teacher(self, images: Tensor) -> Any:
        """Return the teacher's answer to prepared images, without gradients."""
        with torch.no_grad():
            return self.teacher.to(images.device)(images)

    @cached_property
    def teacher(self) -> nn.Module:
        """Hold the frozen teacher, in evaluation mode; opened when first needed."""
        return frozen_network(self.build_teacher, self._weights)

    def build_teacher(self) -> nn.Module:
        """Build the teacher's network."""
        image_format = self.training_dataset().format
        return build_model(
            self.config.teacher,
            num_classes=image_format.num_classes,
            in_channels=image_format.channels,
            image_size=image_format.image_size,
            norm=self.config.norm,
        )
