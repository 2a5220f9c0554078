"""Attach a classifier to every stage of a network, built from the network's own later stages.

Source: Yang et al., Hierarchical Self-supervised Augmented Knowledge Distillation, 2021, section 3.2
and appendix.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gsdist.errors import ConfigError
from gsdist.models.layers import initialise_convolutions
from gsdist.models.normalization import Normalization, replace_batch_norm
from gsdist.models.peers import peer_state
from gsdist.models.staged import StagedNetwork

__all__ = ["BranchedNetwork", "BranchedOutput", "make_branches", "strip", "strip_branches"]


class BranchedOutput(NamedTuple):
    """Hold what a network with branches answers."""

    logits: Tensor
    """`(N, num_classes)`, of the network itself."""
    branches: list[Tensor]
    """`(N, outputs)` for each branch, first stage first."""


def make_branches(network: StagedNetwork, outputs: int) -> nn.ModuleList:
    """Build one branch per stage with fresh weights, each from its stage's output to `(N, outputs)`.

    The branch of a stage repeats all later stages; that of the last stage repeats the last one without
    halving the resolution. Tail, mean over positions and a linear classifier follow.
    """
    last = len(network.stages) - 1
    branches = nn.ModuleList()
    for stage in range(last + 1):
        repeated = [network.make_stage(number) for number in range(stage + 1, last + 1)]
        branches.append(
            nn.Sequential(
                *(repeated or [network.make_stage(last, keep_shape=True)]),
                network.make_tail(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(network.classifier.in_features, outputs),
            )
        )
    initialise_convolutions(branches)
    return branches


class BranchedNetwork(nn.Module):
    """Answer with the logits of a network and of the branches attached to its stages.

    Takes what the network takes, returns a `BranchedOutput`.

    Args:
        backbone: the network; used, not copied.
        outputs: width of every branch's answer.
        frozen_backbone: whether only the branches learn; the backbone then stays in evaluation mode and
            gets no gradient.
        norm: "group" replaces all batch normalisation of the branches.
    """

    def __init__(
        self,
        backbone: StagedNetwork,
        outputs: int,
        *,
        frozen_backbone: bool = False,
        norm: Normalization = "batch",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.branches = make_branches(backbone, outputs)
        if norm == "group":
            replace_batch_norm(self.branches)
        self.frozen_backbone = frozen_backbone
        if frozen_backbone:
            backbone.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "BranchedNetwork":
        """Switch the mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen_backbone:
            self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> BranchedOutput:
        """Return all logits."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen_backbone):
            taps = self.backbone.taps(images)
            logits = self.backbone.classifier(self.backbone.embed(taps[-1]))
        return BranchedOutput(
            logits, [branch(tap) for branch, tap in zip(self.branches, taps, strict=True)]
        )


def strip(state: Mapping[str, Tensor], *, peer: int = 1) -> dict[str, Tensor]:
    """Keep of what a training saved the network alone: no branches, and one of several peers.

    Raises:
        ConfigError: the state is of neither, or of fewer peers.
    """
    if not any(name.startswith(("networks.", "peers.")) for name in state):
        return strip_branches(state)
    kept = peer_state(state, peer)
    return strip_branches(kept) if any(name.startswith("backbone.") for name in kept) else kept


def strip_branches(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keep of a `BranchedNetwork`'s state what belongs to the network itself, under its own names.

    Raises:
        ConfigError: the state is of no network with branches.
    """
    prefix = "backbone."
    kept = {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
    if not kept:
        raise ConfigError(
            f"no name begins with {prefix!r}: these are not the weights of a network with branches "
            f"({', '.join(list(state)[:3])}, ...)"
        )
    return kept
