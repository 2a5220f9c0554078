"""Put several networks that learn together into one module."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from gsdist.errors import ConfigError
from gsdist.models.staged import StagedNetwork

__all__ = ["ContrastPeers", "PeerOutput", "Peers", "peer_state"]

EMBEDDING = 128
"""Length of the vectors that are contrasted."""


class Peers(nn.Module):
    """Answer with the list of all networks' answers to the same images.

    Args:
        networks: used, not copied.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> list[Any]:
        """Return each network's answer."""
        return [network(images) for network in self.networks]


class PeerOutput(NamedTuple):
    """Hold one peer's answer."""

    logits: Tensor
    """`(N, num_classes)`."""
    embedding: Tensor
    """`(N, 128)`, rows of norm 1."""


class ContrastPeers(nn.Module):
    """Answer with logits and embedding of several peers, which may have their first stages in common.

    Takes float images `(N, C, H, W)`, returns a `PeerOutput` per peer. The embedding comes from a head
    of two linear layers on what the classifier sees. Source: Yang et al., Mutual Contrastive Learning,
    2022, section 3.1.

    Args:
        networks: the peers; used, not copied. Of shared parts those of the first are kept.
        shared_stages: number of stages that all peers share, and with them the stem; 0 shares nothing.
    """

    def __init__(self, networks: Sequence[StagedNetwork], *, shared_stages: int = 0) -> None:
        super().__init__()
        self.shared: nn.Module = nn.Identity()
        if shared_stages:
            first = networks[0]
            self.shared = nn.Sequential(first.stem, first.stages[:shared_stages])
            for network in networks:
                network.stem = nn.Identity()
                network.stages = network.stages[shared_stages:]
        self.networks = nn.ModuleList(networks)
        self.heads = nn.ModuleList(_head(network.classifier.in_features) for network in networks)

    def forward(self, images: Tensor) -> list[PeerOutput]:
        """Return each peer's answer."""
        features = self.shared(images)
        answers = []
        for network, head in zip(self.networks, self.heads, strict=True):
            assert isinstance(network, StagedNetwork)
            vectors = network.embed(network.stages(network.stem(features)))
            answers.append(
                PeerOutput(network.classifier(vectors), F.normalize(head(vectors), dim=1))
            )
        return answers


def peer_state(state: Mapping[str, Tensor], peer: int) -> dict[str, Tensor]:
    """Keep of the state of networks that learn together what belongs to one of them, under its own names.

    Takes the peers' own state or that of a module that holds them as "peers". Stages that all share
    become the network's own.

    Raises:
        ConfigError: there is no such peer; they are counted from 1.
    """
    inner = {name.removeprefix("peers."): value for name, value in state.items()}
    own = f"networks.{peer - 1}."
    kept = {name.removeprefix(own): value for name, value in inner.items() if name.startswith(own)}
    if not kept:
        numbers = {int(name.split(".")[1]) for name in inner if name.startswith("networks.")}
        raise ConfigError(f"there is no peer {peer}: these are the weights of {len(numbers)} peers")
    # What is shared stands there as stem (0) and stages (1); stages keep their numbers on both sides.
    for name, value in inner.items():
        if name.startswith("shared."):
            _, part, rest = name.split(".", 2)
            kept[f"{('stem', 'stages')[int(part)]}.{rest}"] = value
    return kept


def _head(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, EMBEDDING), nn.ReLU(), nn.Linear(EMBEDDING, EMBEDDING))
