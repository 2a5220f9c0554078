"""Train peers that contrast their embeddings with remembered ones: mutual contrastive learning with banks.

Source: Yang et al., Mutual Contrastive Learning for Visual Representation Learning, 2022, its ImageNet
form; that each soft term compares the very contrasts of its hard one is reconstructed.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from gsdist.data import ImageDataset
from gsdist.errors import ConfigError
from gsdist.models.peers import EMBEDDING, ContrastPeers, PeerOutput
from gsdist.workloads.contract import LossParts
from gsdist.workloads.distillation.contrast import sum_over_peers, supervised_contrast
from gsdist.workloads.distillation.divergence import divergence
from gsdist.workloads.distillation.gather import gather_rows
from gsdist.workloads.distillation.memory_bank import ContrastChoice, MemoryBank
from gsdist.workloads.distillation.mutual_contrast import (
    MutualContrastConfig,
    MutualContrastWorkload,
)

__all__ = ["BankedPeers", "MclMemoryBankConfig", "MclMemoryBankWorkload", "bank_terms"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MclMemoryBankConfig(MutualContrastConfig):
    """Choose networks, data, contrasts and loss."""

    contrast_temperature: float = 0.07
    """Divides similarities (the paper's tau)."""
    negatives: int = 8192
    """Remembered images of other classes that each image is contrasted with."""

    def __post_init__(self) -> None:
        """Check names and ranges.

        Raises:
            ConfigError: an unknown name or a value out of range.
        """
        MutualContrastConfig.__post_init__(self)
        if self.negatives < 1:
            raise ConfigError(f"negatives must be at least 1, got {self.negatives}")


class BankedPeers(nn.Module):
    """Hold peers and a bank for each.

    Args:
        peers: used, not copied.
        images: number of training images.
    """

    def __init__(self, peers: ContrastPeers, images: int) -> None:
        super().__init__()
        self.peers = peers
        self.banks = nn.ModuleList(MemoryBank(images, EMBEDDING) for _ in peers.networks)

    def forward(self, images: Tensor, contrasts: Tensor) -> tuple[list[PeerOutput], list[Tensor]]:
        """Return each peer's answer, and what its bank holds `(N, K, 128)` of images `(N, K)`."""
        remembered = [bank.slots[contrasts] for bank in self.banks if isinstance(bank, MemoryBank)]
        return self.peers(images), remembered


class MclMemoryBankWorkload(MutualContrastWorkload):
    """Train peers on labels and on what all peers remember of other images.

    A prepared training batch is `(images (N, C, H, W), labels (N,), contrasts (N, 2 + negatives))`, the
    last as of `ContrastChoice`.

    Args:
        config: networks, data, contrasts and loss.
    """

    name = "mcl-memory-bank"
    config: MclMemoryBankConfig

    def __init__(self, config: MclMemoryBankConfig) -> None:
        super().__init__(config)
        self._seen: list[tuple[Tensor, list[Tensor]]] = []

    def build_model(self) -> BankedPeers:
        """Build peers and banks."""
        return BankedPeers(self.build_peers(), len(self._training_data))

    def training_dataset(self) -> Dataset[Any]:  # type: ignore[override]
        """Return the training split; an item is image, label and index."""
        return _IndexedImages(self._training_data)

    def prepare_batch(
        self, batch: Any, *, training: bool, generator: torch.Generator | None = None
    ) -> Any:
        """Prepare images as classification does and, when training, choose what they are contrasted with.

        Draws the choices after what the images need.
        """
        images, labels = super().prepare_batch(batch[:2], training=training, generator=generator)
        if not training:
            return images, labels
        return images, labels, self._choose(batch[2], labels, generator)

    def loss(self, model: nn.Module, batch: Any) -> LossParts:
        """Compute the terms of `parts`."""
        images, labels, contrasts = batch
        answers, remembered = model(images, contrasts)
        embeddings = [answer.embedding for answer in answers]
        self._seen.append((contrasts[:, 0], [own.detach() for own in embeddings]))
        terms = bank_terms(
            embeddings,
            remembered,
            contrast_temperature=self.config.contrast_temperature,
            temperature=self.config.temperature,
        )
        return self.parts(answers, labels, terms)

    def after_step(self, model: nn.Module, step: int) -> None:
        """Bring the embeddings of all ranks' images into the banks.

        Collectives: for each forward pass, one all-gather of the indices and one per peer.
        """
        assert isinstance(model, BankedPeers)
        for indices, embeddings in self._seen:
            everyone = gather_rows(indices)
            for bank, own in zip(model.banks, embeddings, strict=True):
                assert isinstance(bank, MemoryBank)
                bank.update(everyone, gather_rows(own))
        self._seen.clear()

    def answers(self, model: nn.Module, images: Tensor) -> list[PeerOutput]:
        """Return the peers' answers to images."""
        assert isinstance(model, BankedPeers)
        found: list[PeerOutput] = model.peers(images)
        return found

    @cached_property
    def _choose(self) -> ContrastChoice:
        return ContrastChoice(self._training_data.all_labels(), self.config.negatives)


class _IndexedImages(Dataset[tuple[Tensor, int, int]]):
    def __init__(self, images: ImageDataset) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return (*self._images[index], index)


def bank_terms(
    embeddings: list[Tensor],
    remembered: list[Tensor],
    *,
    contrast_temperature: float,
    temperature: float,
) -> dict[str, Tensor]:
    """Compute "vanilla", "interactive", "soft_vanilla" and "soft_interactive", without weights.

    Args:
        embeddings: for each peer `(N, D)`.
        remembered: for each peer `(N, K, D)`: of the image itself, of one of its class, of others. The
            image itself is a positive between two peers and takes no part within one.
        contrast_temperature: divides the similarities.
        temperature: divides them once more in the soft terms.
    """
    peers = range(len(embeddings))
    similarities = {
        (a, b): torch.einsum("nd,nkd->nk", embeddings[a], remembered[b]) / contrast_temperature
        for a in peers
        for b in peers
    }

    def compared(pair: tuple[int, int]) -> Tensor:
        return similarities[pair][:, 1:] if pair[0] == pair[1] else similarities[pair]

    def hard(pair: tuple[int, int]) -> Tensor:
        values = compared(pair)
        positive = torch.zeros_like(values, dtype=torch.bool)
        positive[:, : 1 if pair[0] == pair[1] else 2] = True
        return supervised_contrast(values, positive, torch.ones_like(positive))

    def soft(student: tuple[int, int], teacher: tuple[int, int]) -> Tensor:
        return divergence(compared(student), compared(teacher), temperature)

    return sum_over_peers(len(embeddings), hard, soft)
