"""Train a teacher with branches: all of it, or the branches of a network that is already trained.

Source: Yang et al., Hierarchical Self-supervised Augmented Knowledge Distillation, 2021, equation 5;
the two variants are its Teacher* and Teacher.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from gsdist.models import check_staged_model
from gsdist.models.branches import BranchedNetwork
from gsdist.workloads.classification import ClassificationConfig, ClassificationWorkload
from gsdist.workloads.contract import LossParts
from gsdist.workloads.distillation import hierarchical
from gsdist.workloads.distillation.rotations import rotated_views
from gsdist.workloads.weights import fix_weights, load_weights

__all__ = ["HsakdTeacherConfig", "HsakdTeacherWorkload"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HsakdTeacherConfig(ClassificationConfig):
    """Choose the network, its data, and whether it is already trained."""

    model: str = "resnet56"
    """Network: any that shows its stages."""
    backbone_weights: Path | None = None
    """File of a trained network's weights: it is frozen, and its branches alone learn. Unset: network
    and branches learn together."""
    backbone_sha256: str | None = None
    """What the file's SHA-256 must be; unset: it is computed and becomes part of the settings."""

    def __post_init__(self) -> None:
        """Check names, ranges and the file.

        Raises:
            ConfigError: an unknown name or a value out of range.
            CheckpointError: the file cannot be read or has another hash.
        """
        ClassificationConfig.__post_init__(self)
        check_staged_model(self.model, norm=self.norm, shortcut=self.shortcut)
        fix_weights(self, "backbone_weights", "backbone_sha256")


class HsakdTeacherWorkload(hierarchical.BranchMeasures, ClassificationWorkload):
    """Train branches on the joint labels of class and rotation, and the network on the classes.

    Args:
        config: network, data, and whether it is already trained.
    """

    name = "hsakd-teacher"
    config: HsakdTeacherConfig

    def build_model(self) -> BranchedNetwork:
        """Build network and branches.

        Raises:
            CheckpointError: the file of weights is not one, or of another network.
        """
        config, weights = self.config, self.config.backbone_weights
        model = hierarchical.build_branched(
            config.model,
            self.training_dataset().format,
            norm=config.norm,
            shortcut=config.shortcut,
            frozen_backbone=weights is not None,
        )
        if weights is not None:
            load_weights(model.backbone, weights)
        return model

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> LossParts:
        """Compute "joint_cross_entropy" and, unless the network is frozen, "cross_entropy"."""
        images, labels = batch
        answer = model(rotated_views(images))
        terms = {"joint_cross_entropy": hierarchical.joint_cross_entropy(answer, labels)}
        if self.config.backbone_weights is None:
            smoothing = self.config.label_smoothing
            terms["cross_entropy"] = hierarchical.cross_entropy(answer, labels, smoothing)
        return LossParts(terms)
