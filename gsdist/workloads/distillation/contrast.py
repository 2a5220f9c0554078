"""Compute the losses of mutual contrastive learning from the similarities of peers.

Source: Yang et al., Mutual Contrastive Learning for Visual Representation Learning, 2022, section 3,
with labels.

| paper | here |
| --- | --- |
| v_m | embeddings of peer m, rows of norm 1 |
| tau | contrast temperature |
| T | temperature of the soft terms |
| VCL, ICL | vanilla (anchor and contrasts from one peer), interactive (from two) |
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

from gsdist.workloads.distillation.divergence import divergence, log_probabilities

__all__ = ["ContrastRows", "contrast_terms", "sum_over_peers", "supervised_contrast"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastRows:
    """Say what belongs together when N anchors are compared with K contrasts."""

    is_self: Tensor
    """Bool `(N, K)`: the contrast is the anchor's own image."""
    is_positive: Tensor
    """Bool `(N, K)`: it is another image of the anchor's class."""

    @classmethod
    def of_labels(cls, anchors: Tensor, contrasts: Tensor, first: int) -> "ContrastRows":
        """Compare labels `(N,)` and `(K,)`; the anchors are contrasts `first` to `first + N - 1`."""
        own = torch.arange(len(anchors), device=anchors.device) + first
        is_self = own[:, None] == torch.arange(len(contrasts), device=anchors.device)
        return cls(is_self=is_self, is_positive=(anchors[:, None] == contrasts) & ~is_self)


def contrast_terms(
    anchors: list[Tensor],
    contrasts: list[Tensor],
    rows: ContrastRows,
    *,
    contrast_temperature: float,
    temperature: float,
    soft_self_similarity: bool = True,
) -> dict[str, Tensor]:
    """Compute "vanilla", "interactive", "soft_vanilla" and "soft_interactive", without weights.

    Args:
        anchors: for each peer the embeddings `(N, D)` of this rank.
        contrasts: for each peer the embeddings `(K, D)` of all ranks.
        rows: what belongs together.
        contrast_temperature: divides the similarities.
        temperature: divides them once more in the soft terms.
        soft_self_similarity: whether an anchor's similarity to itself takes part in the soft terms, as
            in the authors' code.
    """
    peers = range(len(anchors))
    similarities = {
        (a, b): anchors[a] @ contrasts[b].T / contrast_temperature for a in peers for b in peers
    }

    def hard(pair: tuple[int, int]) -> Tensor:
        return supervised_contrast(similarities[pair], rows.is_positive, ~rows.is_self)

    def soft(student: tuple[int, int], teacher: tuple[int, int]) -> Tensor:
        own, target = similarities[student], similarities[teacher]
        if not soft_self_similarity:
            own, target = _without(own, rows.is_self), _without(target, rows.is_self)
        return divergence(own, target, temperature)

    return sum_over_peers(len(anchors), hard, soft)


def sum_over_peers(
    peers: int,
    hard: Callable[[tuple[int, int]], Tensor],
    soft: Callable[[tuple[int, int], tuple[int, int]], Tensor],
) -> dict[str, Tensor]:
    """Add the four terms up over peers and ordered pairs of them.

    Args:
        peers: their number.
        hard: contrast of the anchors of one peer with the contrasts of one peer.
        soft: divergence of such similarities from others, which get no gradient.
    """
    pairs = list(permutations(range(peers), 2))
    return {
        "vanilla": _sum([hard((a, a)) for a in range(peers)]),
        "interactive": _sum([hard(pair) for pair in pairs]),
        "soft_vanilla": _sum([soft((a, a), (b, b)) for a, b in pairs]),
        "soft_interactive": _sum([soft((a, b), (b, a)) for a, b in pairs]),
    }


def supervised_contrast(similarities: Tensor, is_positive: Tensor, takes_part: Tensor) -> Tensor:
    """Compute the mean over anchors of minus the mean log-probability of their positives.

    Takes similarities `(N, K)` and bool masks of that shape; contrasts that do not take part are left
    out of the softmax. An anchor without positives counts as 0.
    """
    logarithms = log_probabilities(similarities.masked_fill(~takes_part, -torch.inf))
    found = logarithms.masked_fill(~is_positive, 0.0).sum(1)
    return -(found / is_positive.sum(1).clamp(min=1)).mean()


def _without(similarities: Tensor, is_self: Tensor) -> Tensor:
    return similarities[~is_self].view(len(similarities), -1)


def _sum(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).sum()
