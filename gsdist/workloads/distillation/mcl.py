"""Train peers that contrast each other's embeddings of the batch: mutual contrastive learning.

Source: Yang et al., Mutual Contrastive Learning for Visual Representation Learning, 2022, with labels
and contrasts from the batch.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsdist.data import ClassBalancedBatches
from gsdist.errors import ConfigError
from gsdist.models import StagedNetwork, build_staged_model, check_staged_model
from gsdist.models.peers import ContrastPeers, PeerOutput
from gsdist.workloads.classification import ClassificationConfig, ClassificationWorkload
from gsdist.workloads.contract import LossParts
from gsdist.workloads.distillation.checks import require_not_negative, require_positive
from gsdist.workloads.distillation.contrast import ContrastRows, contrast_terms
from gsdist.workloads.distillation.divergence import divergence
from gsdist.workloads.distillation.gather import first_row, gather_rows
from gsdist.workloads.distillation.peer_measures import peer_names, peer_sums

__all__ = ["MclConfig", "MclWorkload"]

_TERMS = ("vanilla", "interactive", "soft_vanilla", "soft_interactive")


@dataclass(frozen=True, slots=True, kw_only=True)
class MclConfig(ClassificationConfig):
    """Choose the network of all peers, their number, the data and the loss."""

    peers: int = 2
    """Networks that learn together."""
    shared_stages: int = 0
    """First stages, and with them the stem, that all peers share; published are 0 for 2 peers, and for
    4 peers 1, on ImageNet 2."""
    images_per_class: int = 2
    """Images of each class that a batch holds; each anchor needs another one of its class."""
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
    soft_self_similarity: bool = True
    """Whether an image's similarity to itself takes part in imitation, as in the authors' code."""
    logit_distillation: bool = False
    """Whether peers also imitate the mean of all peers' logits; of more than two only the last."""

    def __post_init__(self) -> None:
        """Check names and ranges.

        Raises:
            ConfigError: an unknown name or a value out of range.
        """
        ClassificationConfig.__post_init__(self)
        check_staged_model(self.model, norm=self.norm, shortcut=self.shortcut)
        for name in ("peers", "images_per_class"):
            if getattr(self, name) < 2:
                raise ConfigError(f"{name} must be at least 2, got {getattr(self, name)}")
        require_positive(self, "contrast_temperature", "temperature")
        require_not_negative(self, "shared_stages", *(f"{term}_weight" for term in _TERMS))


class MclWorkload(ClassificationWorkload):
    """Train peers on labels and on each other's embeddings of the whole batch of all workers.

    Args:
        config: networks, data and loss.
    """

    name = "mcl"
    config: MclConfig

    def build_model(self) -> ContrastPeers:
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

    def _build_peer(self) -> StagedNetwork:
        image_format = self.training_dataset().format
        return build_staged_model(
            self.config.model,
            num_classes=image_format.num_classes,
            in_channels=image_format.channels,
            norm=self.config.norm,
            shortcut=self.config.shortcut,
        )

    def training_batches(
        self, *, batch_size: int, rank: int, world_size: int, seed: int
    ) -> ClassBalancedBatches:
        """Deal out batches in which every image has others of its class."""
        data = self.training_dataset()
        return ClassBalancedBatches(
            data.all_labels(),
            images_per_class=self.config.images_per_class,
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            seed=seed,
        )

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> LossParts:
        """Compute "cross_entropy", the weighted contrasts, and perhaps "logit_divergence".

        Collectives: one all-gather of the labels and one per peer, and one all-to-all per peer in the
        backward pass.
        """
        images, labels = batch
        answers: list[PeerOutput] = model(images)
        logits = [answer.logits for answer in answers]
        smoothing = self.config.label_smoothing
        terms = [F.cross_entropy(own, labels, label_smoothing=smoothing) for own in logits]
        parts = {
            "cross_entropy": torch.stack(terms).sum(),
            **self._contrasts([answer.embedding for answer in answers], labels),
        }
        if self.config.logit_distillation:
            parts["logit_divergence"] = imitation_of_mean(logits, self.config.temperature)
        return LossParts(parts)

    def _contrasts(self, embeddings: list[Tensor], labels: Tensor) -> dict[str, Tensor]:
        config = self.config
        rows = ContrastRows.of_labels(labels, gather_rows(labels), first_row(labels))
        terms = contrast_terms(
            embeddings,
            [gather_rows(own) for own in embeddings],
            rows,
            contrast_temperature=config.contrast_temperature,
            temperature=config.temperature,
            soft_self_similarity=config.soft_self_similarity,
        )
        return {name: getattr(config, f"{name}_weight") * terms[name] for name in _TERMS}

    def metric_names(self, model: nn.Module) -> tuple[str, ...]:
        """List what `metric_sums` measures."""
        return peer_names(self.config.peers)

    def metric_sums(self, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Measure every peer, their mean, and what they say together."""
        return peer_sums([answer.logits for answer in model(images)], labels)


def imitation_of_mean(logits: list[Tensor], temperature: float) -> Tensor:
    """Add up the peers' divergences from the mean of all peers' logits `(N, C)`.

    Two peers both imitate it, of more only the last does, as in the authors' code.
    """
    mean = torch.stack(logits).mean(0)
    imitating = logits if len(logits) == 2 else logits[-1:]
    return torch.stack([divergence(own, mean, temperature) for own in imitating]).sum()
