"""Train two networks with branches that teach each other, without a teacher.

Source: Yang et al., Knowledge Distillation Using Hierarchical Self-Supervision Augmented Distribution,
2022, its online mode; the loss is reconstructed from published code and logs.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from gsdist.models import check_staged_model
from gsdist.models.branches import BranchedNetwork, BranchedOutput
from gsdist.models.peers import Peers
from gsdist.workloads.classification import ClassificationConfig, ClassificationWorkload
from gsdist.workloads.contract import LossParts
from gsdist.workloads.distillation import hierarchical
from gsdist.workloads.distillation.checks import require_positive
from gsdist.workloads.distillation.peer_measures import peer_names, peer_sums
from gsdist.workloads.distillation.rotations import ROTATIONS, rotated_views

__all__ = ["HssakdOnlineConfig", "HssakdOnlineWorkload", "mutual_terms"]

_PEERS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class HssakdOnlineConfig(ClassificationConfig):
    """Choose the network of both peers and the data."""

    temperature: float = 3.0
    """Divides the logits that are compared."""

    def __post_init__(self) -> None:
        """Check names and ranges.

        Raises:
            ConfigError: an unknown name or a value out of range.
        """
        ClassificationConfig.__post_init__(self)
        check_staged_model(self.model, norm=self.norm, shortcut=self.shortcut)
        require_positive(self, "temperature")


class HssakdOnlineWorkload(ClassificationWorkload):
    """Train two peers on labels, joint labels, and each other.

    Args:
        config: network and data.
    """

    name = "hssakd-online"
    config: HssakdOnlineConfig

    def build_model(self) -> Peers:
        """Build both peers with their branches, each with weights of its own."""
        config = self.config
        networks = [
            hierarchical.build_branched(
                config.model,
                self.training_dataset().format,
                norm=config.norm,
                shortcut=config.shortcut,
            )
            for _ in range(_PEERS)
        ]
        return Peers(networks)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> LossParts:
        """Compute the terms of `mutual_terms`."""
        images, labels = batch
        first, second = model(rotated_views(images))
        config = self.config
        return LossParts(
            mutual_terms(
                first, second, labels, config.temperature, smoothing=config.label_smoothing
            )
        )

    def part_of(self, parameter: str) -> str:
        """Tell networks and branches apart."""
        return hierarchical.part_of(parameter)

    def metric_names(self, model: nn.Module) -> tuple[str, ...]:
        """List what `metric_sums` measures."""
        assert isinstance(model, Peers)
        branched = model.networks[0]
        assert isinstance(branched, BranchedNetwork)
        joint = hierarchical.joint_metric_names(len(branched.branches))
        own = [f"peer{peer + 1}_{name}" for peer in range(_PEERS) for name in joint]
        return (*peer_names(_PEERS), *own)

    def metric_sums(self, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Measure both peers, their mean, what they say together, and all branches."""
        answers: list[BranchedOutput] = model(rotated_views(images))
        sums = peer_sums([answer.logits[::ROTATIONS] for answer in answers], labels)
        for peer, answer in enumerate(answers):
            joint = hierarchical.joint_metric_sums(answer, labels)
            sums |= {f"peer{peer + 1}_{name}": value for name, value in joint.items()}
        return sums


def mutual_terms(
    first: BranchedOutput,
    second: BranchedOutput,
    labels: Tensor,
    temperature: float,
    *,
    smoothing: float = 0.0,
) -> dict[str, Tensor]:
    """Add up, over both peers, the losses of a joint teacher and those of a student of the other.

    Takes the answers to the rotated views of images with `labels` `(N,)`.
    """
    terms = {
        "cross_entropy": hierarchical.cross_entropy(first, labels, smoothing)
        + hierarchical.cross_entropy(second, labels, smoothing),
        "joint_cross_entropy": hierarchical.joint_cross_entropy(first, labels)
        + hierarchical.joint_cross_entropy(second, labels),
    }
    forth = hierarchical.imitation(first, second, temperature)
    back = hierarchical.imitation(second, first, temperature)
    return terms | {name: forth[name] + back[name] for name in forth}
