"""Describe which parts of a network belong to one channel."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["ChannelGroup", "Coupling", "Role", "Slice"]

Role = Literal["out", "norm", "depthwise", "in", "padding"]
"""What a module does with a channel: a convolution makes it ("out"), a normalisation or a depthwise
convolution keeps it, a convolution or linear layer reads it ("in"), a padding adds it as zeros."""

Coupling = Literal["layer", "stage"]
"""Which convolutions share their channels: none ("layer"), or all whose outputs are added up
("stage")."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slice:
    """Tie channels of a group to positions along one axis of a module."""

    module: str
    """Name of the module in the model."""
    role: Role
    channels: Tensor
    """`(n,)` int64, channels of the group; a channel may occur several times."""
    positions: Tensor
    """`(n,)` int64, where each lies in the module."""

    def positions_of(self, chosen: Tensor) -> Tensor:
        """Return the positions of those channels where the bool tensor `(size,)` is True."""
        return self.positions[chosen[self.channels]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChannelGroup:
    """Hold channels that are kept or removed one by one, each with all that belongs to it."""

    name: str
    """Name of the convolution that makes them, the first one if there are several."""
    size: int
    slices: tuple[Slice, ...]
    residual: bool
    """Whether the channels end in a sum. One that is zero is then removed from the convolution only;
    the sum and its readers keep their width. Never with the coupling "stage"."""
    expands_at: str | None = None
    """With `residual`: the module behind which the sum's width has to be restored."""

    def of_role(self, *roles: Role) -> list[Slice]:
        """Return the slices with these roles."""
        return [part for part in self.slices if part.role in roles]

    def largest_removal(self, order: Tensor) -> Tensor:
        """Shorten `order`, channels to remove, so that every module keeps at least one position."""
        keep = torch.ones(self.size, dtype=torch.bool)
        keep[order] = False
        if all(len(part.positions_of(keep)) for part in self.of_role("out")):
            return order
        keep[:] = True
        bounds = [(part, len(part.positions)) for part in self.of_role("out")]
        allowed = []
        for channel in order.tolist():
            keep[channel] = False
            if any(len(part.positions_of(~keep)) >= size for part, size in bounds):
                keep[channel] = True
            else:
                allowed.append(channel)
        return torch.tensor(allowed, dtype=torch.int64)
