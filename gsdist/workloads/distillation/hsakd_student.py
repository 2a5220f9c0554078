"""Train a student to answer as its teacher does, network by network and branch by branch.

Source: Yang et al., Hierarchical Self-supervised Augmented Knowledge Distillation, 2021, equations 6 to
9. The student's branches get no labels, as those hurt (the paper's ablation).
"""

from dataclasses import dataclass

from torch import Tensor, nn

from gsdist.errors import ConfigError
from gsdist.models import check_staged_model
from gsdist.models.branches import BranchedNetwork
from gsdist.workloads.contract import LossParts
from gsdist.workloads.distillation import hierarchical
from gsdist.workloads.distillation.rotations import rotated_views
from gsdist.workloads.distillation.student import StudentConfig, StudentWorkload

__all__ = ["HsakdStudentConfig", "HsakdStudentWorkload"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HsakdStudentConfig(StudentConfig):
    """Choose student, teacher and data; both networks show as many stages."""

    def __post_init__(self) -> None:
        """Check names, ranges and the teacher's file.

        Raises:
            ConfigError: an unknown name or a value out of range.
            CheckpointError: the teacher's file cannot be read or has another hash.
        """
        StudentConfig.__post_init__(self)
        check_staged_model(self.model, norm=self.norm, shortcut=self.shortcut)
        check_staged_model(self.teacher, norm=self.norm)


class HsakdStudentWorkload(hierarchical.BranchMeasures, StudentWorkload):
    """Train a student with branches on labels and on a frozen teacher with branches.

    Args:
        config: student, teacher and data.

    Raises:
        ConfigError: no file of the teacher's weights.
    """

    name = "hsakd-student"
    config: HsakdStudentConfig

    def build_model(self) -> BranchedNetwork:
        """Build the student and its branches.

        Raises:
            ConfigError: student and teacher differ in the number of branches.
            CheckpointError: the teacher's file does not hold its weights.
        """
        config = self.config
        model = hierarchical.build_branched(
            config.model,
            self.training_dataset().format,
            norm=config.norm,
            shortcut=config.shortcut,
        )
        assert isinstance(self.teacher, BranchedNetwork)
        own, taught = len(model.branches), len(self.teacher.branches)
        if own != taught:
            raise ConfigError(
                f"student {config.model!r} has {own} stages and teacher {config.teacher!r} {taught}; "
                "branches are compared one by one, so choose networks with as many"
            )
        return model

    def build_teacher(self) -> BranchedNetwork:
        """Build the teacher and its branches."""
        config = self.config
        return hierarchical.build_branched(
            config.teacher, self.training_dataset().format, norm=config.norm
        )

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> LossParts:
        """Compute "cross_entropy", "divergence" and "branch_divergence"."""
        images, labels = batch
        views = rotated_views(images)
        answer = model(views)
        smoothing = self.config.label_smoothing
        cross_entropy = hierarchical.cross_entropy(answer, labels, smoothing)
        imitation = hierarchical.imitation(answer, self.ask_teacher(views), self.config.temperature)
        return LossParts({"cross_entropy": cross_entropy, **imitation})
