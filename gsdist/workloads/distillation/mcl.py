"""Train peers that contrast each other's embeddings of the batch: mutual contrastive learning.

Source: Yang et al., Mutual Contrastive Learning for Visual Representation Learning, 2022, its CIFAR
form.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from gsdist.data import ClassBalancedBatches
from gsdist.errors import ConfigError
from gsdist.models.peers import ContrastPeers, PeerOutput
from gsdist.workloads.contract import LossParts
from gsdist.workloads.distillation.contrast import ContrastRows, contrast_terms
from gsdist.workloads.distillation.gather import first_row, gather_rows
from gsdist.workloads.distillation.mutual_contrast import (
    MutualContrastConfig,
    MutualContrastWorkload,
)

__all__ = ["MclConfig", "MclWorkload"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MclConfig(MutualContrastConfig):
    """Choose networks, data, batches and loss."""

    images_per_class: int = 2
    """Images of each class that a batch holds; each anchor needs another one of its class."""
    soft_self_similarity: bool = True
    """Whether an image's similarity to itself takes part in imitation, as in the authors' code."""

    def __post_init__(self) -> None:
        """Check names and ranges.

        Raises:
            ConfigError: an unknown name or a value out of range.
        """
        MutualContrastConfig.__post_init__(self)
        if self.images_per_class < 2:
            raise ConfigError(f"images_per_class must be at least 2, got {self.images_per_class}")


class MclWorkload(MutualContrastWorkload):
    """Train peers on labels and on each other's embeddings of the whole batch of all workers.

    Args:
        config: networks, data, batches and loss.
    """

    name = "mcl"
    config: MclConfig

    def build_model(self) -> ContrastPeers:
        """Build the peers."""
        return self.build_peers()

    def training_batches(
        self, *, batch_size: int, rank: int, world_size: int, seed: int
    ) -> ClassBalancedBatches:
        """Deal out batches in which every image has others of its class."""
        return ClassBalancedBatches(
            self._training_data.all_labels(),
            images_per_class=self.config.images_per_class,
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            seed=seed,
        )

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> LossParts:
        """Compute the terms of `parts`.

        Collectives: one all-gather of the labels and one per peer; in the backward pass one all-to-all
        per peer.
        """
        images, labels = batch
        answers = self.answers(model, images)
        embeddings = [answer.embedding for answer in answers]
        contrasts = contrast_terms(
            embeddings,
            [gather_rows(own) for own in embeddings],
            ContrastRows.of_labels(labels, gather_rows(labels), first_row(labels)),
            contrast_temperature=self.config.contrast_temperature,
            temperature=self.config.temperature,
            soft_self_similarity=self.config.soft_self_similarity,
        )
        return self.parts(answers, labels, contrasts)

    def answers(self, model: nn.Module, images: Tensor) -> list[PeerOutput]:
        """Return the peers' answers to images."""
        found: list[PeerOutput] = model(images)
        return found
