"""Measure networks that learn together: each of them, their mean, and what they say together."""

import torch
from torch import Tensor

from gsdist.workloads.classification import classification_sums

__all__ = ["peer_names", "peer_sums"]


def peer_names(peers: int) -> tuple[str, ...]:
    """List what `peer_sums` measures for so many peers."""
    own = [f"peer{number + 1}_accuracy" for number in range(peers)]
    return ("accuracy", "loss", "ensemble_accuracy", *own)


def peer_sums(logits: list[Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Sum up over images what peers with these logits `(N, C)` achieve.

    "accuracy" and "loss" are means over the peers, "ensemble_accuracy" is that of their mean
    probability.
    """
    each = [classification_sums(own, labels) for own in logits]
    together = torch.stack([own.softmax(1) for own in logits]).mean(0)
    accuracies = [own["accuracy"].double() for own in each]
    return {
        "accuracy": torch.stack(accuracies).mean(),
        "loss": torch.stack([own["loss"] for own in each]).mean(),
        "ensemble_accuracy": (together.argmax(1) == labels).sum(),
        **{f"peer{number + 1}_accuracy": hits for number, hits in enumerate(accuracies)},
    }
