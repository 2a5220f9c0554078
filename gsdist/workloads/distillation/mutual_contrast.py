"""Hold what the forms of mutual contrastive learning share: peers, their loss terms and measures.

Source: Yang et al., Mutual Contrastive Learning for Visual Representation Learning, 2022, section 3,
with labels.
"""

import abc
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsdist.errors import ConfigError
from gsdist.models import StagedNetwork, build_staged_model, check_staged_model
from gsdist.models.peers import ContrastPeers, PeerOutput
from gsdist.workloads.classification import ClassificationConfig, ClassificationWorkload
from gsdist.workloads.contract import LossParts
from gsdist.workloads.distillation.checks import require_not_negative, require_positive
from gsdist.workloads.distillation.divergence import divergence
from gsdist.workloads.distillation.peer_measures import peer_names, peer_sums

__all__ = [
    "TERMS",
    "MutualContrastConfig",
    "MutualContrastWorkload",
    "PeerContrastConfig",
    "imitation_of_mean",
    "weighted",
]

TERMS = ("vanilla", "interactive", "soft_vanilla", "soft_interactive")
"""What peers that are contrasted minimise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerContrastConfig(ClassificationConfig):
    """Choose the network of all peers, their number, the data and how they are contrasted."""

    peers: int = 2
    """Networks that learn together."""
    contrast_temperature: float = 0.1
    """Divides similarities (the paper's tau); 0.07 in its ImageNet recipe."""
    temperature: float = 3.0
    """Divides the logits, and once more the similarities, that peers imitate."""
    vanilla_weight: float = 0.1
    """Weight (alpha) of contrasts within one peer."""
    interactive_weight: float = 0.1
    """Weight (beta) of contrasts between two peers."""
    soft_vanilla_weight: float = 1.0
    """Weight (gamma) of imitating another peer's similarities within itself."""
    soft_interactive_weight: float = 1.0
    """Weight (lambda) of imitating another peer's similarities to oneself."""

    def __post_init__(self) -> None:
        """Check names and ranges.

        Raises:
            ConfigError: an unknown name or a value out of range.
        """
        ClassificationConfig.__post_init__(self)
        check_staged_model(self.model, norm=self.norm, shortcut=self.shortcut)
        if self.peers < 2:
            raise ConfigError(f"peers must be at least 2, got {self.peers}")
        require_positive(self, "contrast_temperature", "temperature")
        require_not_negative(self, *(f"{term}_weight" for term in TERMS))


def weighted(terms: Mapping[str, Tensor], config: PeerContrastConfig) -> dict[str, Tensor]:
    """Multiply the four terms by their weights."""
    return {name: getattr(config, f"{name}_weight") * terms[name] for name in TERMS}


@dataclass(frozen=True, slots=True, kw_only=True)
class MutualContrastConfig(PeerContrastConfig):
    """Choose networks, data, and what peers learn from labels besides contrasts."""

    shared_stages: int = 0
    """First stages, and with them the stem, that all peers share; published are 0 for 2 peers, and for
    4 peers 1, on ImageNet 2."""
    logit_distillation: bool = False
    """Whether peers also imitate the mean of all peers' logits; of more than two only the last."""

    def __post_init__(self) -> None:
        """Check names and ranges.

        Raises:
            ConfigError: an unknown name or a value out of range.
        """
        PeerContrastConfig.__post_init__(self)
        require_not_negative(self, "shared_stages")


class MutualContrastWorkload(ClassificationWorkload, abc.ABC):
    """Train peers on labels and on contrasts; a subclass says with what their embeddings are contrasted.

    Args:
        config: networks, data and loss.
    """

    config: MutualContrastConfig

    def build_peers(self) -> ContrastPeers:
        """Build the peers, each with weights of its own.

        Raises:
            ConfigError: more shared stages than the network has.
        """
        networks = [self._build_peer() for _ in range(self.config.peers)]
        if self.config.shared_stages >= len(networks[0].stages):
            raise ConfigError(
                f"shared_stages must be below the {len(networks[0].stages)} stages of "
                f"{self.config.model!r}, got {self.config.shared_stages}"
            )
        return ContrastPeers(networks, shared_stages=self.config.shared_stages)

    @abc.abstractmethod
    def answers(self, model: nn.Module, images: Tensor) -> list[PeerOutput]:
        """Return the peers' answers to images, for measuring."""

    def _build_peer(self) -> StagedNetwork:
        image_format = self._training_data.format
        return build_staged_model(
            self.config.model,
            num_classes=image_format.num_classes,
            in_channels=image_format.channels,
            norm=self.config.norm,
            shortcut=self.config.shortcut,
        )

    def parts(
        self, answers: list[PeerOutput], labels: Tensor, contrasts: Mapping[str, Tensor]
    ) -> LossParts:
        """Put "cross_entropy", the weighted contrasts, and perhaps "logit_divergence" together."""
        config = self.config
        logits = [answer.logits for answer in answers]
        terms = [
            F.cross_entropy(own, labels, label_smoothing=config.label_smoothing) for own in logits
        ]
        parts = {"cross_entropy": torch.stack(terms).sum(), **weighted(contrasts, config)}
        if config.logit_distillation:
            parts["logit_divergence"] = imitation_of_mean(logits, config.temperature)
        return LossParts(parts)

    def metric_names(self, model: nn.Module) -> tuple[str, ...]:
        """List what `metric_sums` measures."""
        return peer_names(self.config.peers)

    def metric_sums(self, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Measure every peer, their mean, and what they say together."""
        return peer_sums([answer.logits for answer in self.answers(model, images)], labels)


def imitation_of_mean(logits: list[Tensor], temperature: float) -> Tensor:
    """Add up the peers' divergences from the mean of all peers' logits `(N, C)`.

    Two peers both imitate it, of more only the last does, as in the authors' code.
    """
    mean = torch.stack(logits).mean(0)
    imitating = logits if len(logits) == 2 else logits[-1:]
    return torch.stack([divergence(own, mean, temperature) for own in imitating]).sum()
