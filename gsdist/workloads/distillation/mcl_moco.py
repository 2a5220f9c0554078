"""Train peers without labels, each contrasted with the keys of all: mutual contrastive learning with queues.

Source: Yang et al., Mutual Contrastive Learning for Visual Representation Learning, 2022, its
self-supervised form on He et al., Momentum Contrast, 2020. That work uses ImageNet, batches of 256, rate
0.03 divided by 10 after epochs 120 and 160 of 200, and weight decay 1e-4.

| paper | here |
| --- | --- |
| q, k | embeddings of two random cuts of an image, by a peer's query and key encoder |
| m | share of a key encoder that stays in a step |
| K | length of the queue |
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsdist.data import normalize, random_colours, random_flip, random_resized_crop
from gsdist.errors import ConfigError
from gsdist.models import StagedNetwork, build_staged_model
from gsdist.models.peers import EMBEDDING
from gsdist.workloads.classification import ClassificationWorkload
from gsdist.workloads.contract import LossParts
from gsdist.workloads.distillation.contrast import sum_over_peers
from gsdist.workloads.distillation.divergence import divergence
from gsdist.workloads.distillation.gather import first_row, gather_rows
from gsdist.workloads.distillation.key_queue import KeyQueue
from gsdist.workloads.distillation.mutual_contrast import PeerContrastConfig, weighted

__all__ = ["MclMocoConfig", "MclMocoWorkload", "QueuedPeers", "queue_terms"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MclMocoConfig(PeerContrastConfig):
    """Choose networks, data, queue and loss; labels only measure."""

    contrast_temperature: float = 0.07
    """Divides similarities (the paper's tau)."""
    vanilla_weight: float = 1.0
    """Weight of contrasts within one peer."""
    interactive_weight: float = 1.0
    """Weight of contrasts between two peers."""
    queue_length: int = 65536
    """Newest keys that each image is contrasted with (K)."""
    key_momentum: float = 0.999
    """Share of a key encoder's parameters that stays in a step (m)."""

    def __post_init__(self) -> None:
        """Check names and ranges.

        Raises:
            ConfigError: an unknown name or a value out of range.
        """
        PeerContrastConfig.__post_init__(self)
        if self.queue_length < 1:
            raise ConfigError(f"queue_length must be at least 1, got {self.queue_length}")
        if not 0.0 <= self.key_momentum < 1.0:
            raise ConfigError(f"key_momentum must be in [0, 1), got {self.key_momentum}")
        if self.label_smoothing:
            raise ConfigError(f"label_smoothing={self.label_smoothing}, but no labels are learnt")


class QueuedPeers(nn.Module):
    """Hold for each peer a query encoder, a key encoder that follows it, and the queue of keys.

    Args:
        networks: the query encoders, whose classifiers give embeddings; used, not copied.
        queue_length: keys that are kept of each peer.
    """

    def __init__(self, networks: Sequence[StagedNetwork], queue_length: int) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.key_networks = copy.deepcopy(self.networks).requires_grad_(False)
        self.queue = KeyQueue(len(networks), queue_length, EMBEDDING)

    def forward(self, queries: Tensor, keyed: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Embed two cuts `(N, C, H, W)` of the same images.

        Returns the query embeddings `(N, 128)` of each peer, the keys of all ranks' images
        `(peers, P * N, 128)`, and the queue as it stands, `(peers, K, 128)`.

        Collectives: one all-gather of the images and one of the keys.
        """
        embeddings = [F.normalize(network(queries), dim=1) for network in self.networks]
        return embeddings, self._keys(keyed), self.queue.keys.detach()

    @torch.no_grad()
    def _keys(self, images: Tensor) -> Tensor:
        """Embed the images of all ranks, each in a batch drawn from all of them.

        Otherwise an image could be told by the batch statistics it shares with its query.
        """
        everyone = gather_rows(images)
        generator = torch.Generator().manual_seed(int(self.queue.seen))
        order = torch.randperm(len(everyone), generator=generator).to(images.device)
        first = first_row(images)
        own = everyone[order[first : first + len(images)]]
        embedded = [F.normalize(network(own), dim=1) for network in self.key_networks]
        shuffled = gather_rows(torch.stack(embedded, dim=1))
        return shuffled[order.argsort()].transpose(0, 1)

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move the key encoders towards the query encoders."""
        pairs = zip(self.key_networks.parameters(), self.networks.parameters(), strict=True)
        for key, query in pairs:
            key.lerp_(query, 1 - momentum)


class MclMocoWorkload(ClassificationWorkload):
    """Train peers to recognise images by other cuts of them, and each other's judgement of likeness.

    A prepared training batch is `(first cuts (N, C, H, W), second cuts, labels (N,))`. "accuracy" is the
    share of test images whose nearest key in the queue has their label, the mean over peers.

    Args:
        config: networks, data, queue and loss.
    """

    name = "mcl-moco"
    config: MclMocoConfig
    crops_on_device = True

    def __init__(self, config: MclMocoConfig) -> None:
        super().__init__(config)
        self._new: list[tuple[Tensor, Tensor]] = []

    def build_model(self) -> QueuedPeers:
        """Build the peers, each with weights of its own."""
        image_format = self._training_data.format
        networks = [
            build_staged_model(
                self.config.model,
                num_classes=EMBEDDING,
                in_channels=image_format.channels,
                norm=self.config.norm,
                shortcut=self.config.shortcut,
            )
            for _ in range(self.config.peers)
        ]
        return QueuedPeers(networks, self.config.queue_length)

    def prepare_batch(
        self, batch: Any, *, training: bool, generator: torch.Generator | None = None
    ) -> Any:
        """Cut every image twice at random when training; only normalise it otherwise.

        Draws, for the first cut and then for the second: crops, colours and, where they help, flips.
        """
        images, labels = batch
        if not training or not self.config.augment:
            prepared, _ = super().prepare_batch(batch, training=False)
            return (prepared, prepared, labels) if training else (prepared, labels)
        image_format = self._training_data.format
        cuts = []
        for _ in range(2):
            cut = random_colours(random_resized_crop(images, generator), generator)
            if image_format.flip:
                cut = random_flip(cut, generator)
            cuts.append(normalize(cut, image_format.mean, image_format.std))
        return (*cuts, labels)

    def loss(self, model: nn.Module, batch: Any) -> LossParts:
        """Compute the four weighted terms of `queue_terms`.

        Collectives: those of `QueuedPeers.forward`, and one all-gather of the labels.
        """
        queries, keyed, labels = batch
        embeddings, keys, queue = model(queries, keyed)
        self._new.append((keys, gather_rows(labels)))
        first = first_row(labels)
        terms = queue_terms(
            embeddings,
            list(keys[:, first : first + len(labels)]),
            list(queue),
            contrast_temperature=self.config.contrast_temperature,
            temperature=self.config.temperature,
        )
        return LossParts(weighted(terms, self.config))

    def after_step(self, model: nn.Module, step: int) -> None:
        """Let the key encoders follow, and put the new keys into the queue."""
        assert isinstance(model, QueuedPeers)
        model.follow(self.config.key_momentum)
        for keys, labels in self._new:
            model.queue.update(keys, labels)
        self._new.clear()

    def metric_names(self, model: nn.Module) -> tuple[str, ...]:
        """List what `metric_sums` measures."""
        return ("accuracy", *(f"peer{peer + 1}_accuracy" for peer in range(self.config.peers)))

    def metric_sums(self, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Count the images whose nearest key is of their class, for every peer and their mean."""
        assert isinstance(model, QueuedPeers)
        hits = [
            (model.queue.nearest(peer, F.normalize(network(images), dim=1)) == labels).sum()
            for peer, network in enumerate(model.networks)
        ]
        own = {f"peer{peer + 1}_accuracy": count for peer, count in enumerate(hits)}
        return {"accuracy": torch.stack(hits).double().mean(), **own}


def queue_terms(
    queries: list[Tensor],
    keys: list[Tensor],
    queue: list[Tensor],
    *,
    contrast_temperature: float,
    temperature: float,
) -> dict[str, Tensor]:
    """Compute "vanilla", "interactive", "soft_vanilla" and "soft_interactive", without weights.

    Args:
        queries: for each peer `(N, D)`.
        keys: for each peer `(N, D)`, of the same images.
        queue: for each peer `(K, D)`, of other images.
        contrast_temperature: divides the similarities.
        temperature: divides them once more in the soft terms.
    """
    peers = range(len(queries))
    similarities = {
        (a, b): _similarities(queries[a], keys[b], queue[b]) / contrast_temperature
        for a in peers
        for b in peers
    }

    def hard(pair: tuple[int, int]) -> Tensor:
        own_key = torch.zeros(len(queries[0]), dtype=torch.int64, device=queries[0].device)
        return F.cross_entropy(similarities[pair], own_key)

    def soft(student: tuple[int, int], teacher: tuple[int, int]) -> Tensor:
        return divergence(similarities[student], similarities[teacher], temperature)

    return sum_over_peers(len(queries), hard, soft)


def _similarities(queries: Tensor, keys: Tensor, queue: Tensor) -> Tensor:
    """Compare each query with its own key, then with the queue: `(N, 1 + K)`."""
    return torch.cat([(queries * keys).sum(1, keepdim=True), queries @ queue.T], dim=1)
