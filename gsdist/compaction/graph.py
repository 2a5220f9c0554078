"""Follow every channel of a network from the convolution that makes it to the layers that read it.

torch.fx gives the graph, one run with an example gives the shapes. Each tensor carries one number per
channel, its atom: a convolution makes fresh atoms; normalisation, activation, pooling and depthwise
convolutions hand them on; a concatenation joins lists; a sum makes fresh atoms and remembers which were
added. From what each layer saw, `channel_groups` puts together what belongs to one channel.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gsdist.compaction.groups import ChannelGroup, Coupling, Role, Slice

__all__ = ["CONSTANT", "ChannelGraph", "Layer"]

CONSTANT = -1
"""The atom of a channel that can never be removed: of the input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Hold what a layer costs, per output channel and input channel where it has both."""

    name: str
    role: Role
    """"out" for what makes channels: convolution and linear layer."""
    out_channels: int
    in_channels: int
    """Per group of a grouped convolution."""
    positions: int
    """Height times width of the output."""
    kernel: int
    """Elements of the kernel per pair of channels."""
    bias: bool


@dataclass(slots=True, kw_only=True)
class ChannelGraph:
    """Hold the atoms that every layer saw. Made by `trace_channels`."""

    layers: dict[str, Layer] = field(default_factory=dict)
    made: dict[str, Tensor] = field(default_factory=dict)
    """Atoms by the name of the convolution that made them."""
    seen: list[tuple[str, Role, Tensor]] = field(default_factory=list)
    """Module, role and the atoms along that axis; all but the roles of `made`."""
    sums: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Pairs of atoms: an operand's and that of the sum."""
    outputs: list[Tensor] = field(default_factory=list)
    """Atoms of what the network returns."""
    sole_norm: dict[str, str] = field(default_factory=dict)
    """The normalisation behind a convolution that nothing else reads."""
    atoms: int = 0

    def fresh(self, count: int) -> Tensor:
        """Return so many new atoms."""
        self.atoms += count
        return torch.arange(self.atoms - count, self.atoms)

    def channel_groups(self, coupling: Coupling = "layer") -> list[ChannelGroup]:
        """Put the channels of every convolution together with all that belongs to them.

        Channels that the network returns, and with coupling "stage" those added to its input, belong
        to no group: they cannot be removed.
        """
        labels = self._merged_atoms() if coupling == "stage" else torch.arange(self.atoms)
        fixed = torch.zeros(self.atoms, dtype=torch.bool)
        for atoms in self._fixed_atoms(coupling):
            fixed[labels[atoms[atoms >= 0]]] = True
        summed = torch.zeros(self.atoms, dtype=torch.bool)
        if coupling == "layer" and self.sums:
            summed[torch.cat([operand[operand >= 0] for operand, _ in self.sums])] = True
        components = list(self._components(labels, fixed))
        residual = [bool(summed[members].any()) for members in components]
        slices = self._slices(labels, components)
        groups = []
        for members, parts, ends_in_sum in zip(components, slices, residual, strict=True):
            name = next(part.module for part in parts if part.role == "out")
            groups.append(
                ChannelGroup(
                    name=name,
                    size=len(members),
                    slices=tuple(p for p in parts if not (ends_in_sum and p.role == "in")),
                    residual=ends_in_sum,
                    expands_at=self.sole_norm.get(name, name) if ends_in_sum else None,
                )
            )
        return groups

    def widths(self) -> dict[tuple[str, Role], int]:
        """Return the number of channels by module and role."""
        return {(name, role): len(atoms) for name, role, atoms in self._everywhere()}

    def _everywhere(self) -> Iterator[tuple[str, Role, Tensor]]:
        for name, atoms in self.made.items():
            yield name, "out", atoms
        yield from self.seen

    def _slices(self, labels: Tensor, components: list[Tensor]) -> list[list[Slice]]:
        """Find, for each component of labels, where its channels lie in all layers."""
        # CONSTANT, used as an index, finds the last entry, which is that of no group.
        padded = torch.cat([labels, torch.tensor([self.atoms])])
        group_of = torch.full((self.atoms + 1,), -1)
        channel_of = torch.full((self.atoms + 1,), -1)
        for number, members in enumerate(components):
            group_of[members] = number
            channel_of[members] = torch.arange(len(members))
        found: list[list[Slice]] = [[] for _ in components]
        for name, role, atoms in self._everywhere():
            labelled = padded[atoms]
            owners = group_of[labelled]
            for number in sorted(set(owners.tolist())):
                if number >= 0:
                    positions = (owners == number).nonzero()[:, 0]
                    channels = channel_of[labelled[positions]]
                    found[number].append(
                        Slice(module=name, role=role, channels=channels, positions=positions)
                    )
        return found

    def _components(self, labels: Tensor, fixed: Tensor) -> Iterator[Tensor]:
        """Yield the labels of the channels of each group: of all convolutions that share some."""
        owner: dict[int, int] = {}
        merged: list[set[int]] = []
        for atoms in self.made.values():
            own = set(labels[atoms].tolist())
            touching = sorted({owner[label] for label in own if label in owner})
            for other in touching:
                own |= merged[other]
                merged[other] = set()
            place = touching[0] if touching else len(merged)
            if place == len(merged):
                merged.append(own)
            else:
                merged[place] = own
            owner.update(dict.fromkeys(own, place))
        for component in merged:
            members = torch.tensor(sorted(component), dtype=torch.int64)
            members = members[~fixed[members]]
            if len(members):
                yield members

    def _fixed_atoms(self, coupling: Coupling) -> Iterator[Tensor]:
        yield from self.outputs
        if coupling == "stage":
            for operand, total in self.sums:
                yield total[operand == CONSTANT]

    def _merged_atoms(self) -> Tensor:
        """Label every atom with the smallest of those it is added to, over all sums."""
        labels = torch.arange(self.atoms)
        for operand, total in reversed(self.sums):
            real = operand >= 0
            first, second = operand[real], total[real]
            while True:
                low = torch.minimum(labels[first], labels[second])
                before = labels.clone()
                labels.scatter_reduce_(0, labels[first].clone(), low, "amin")
                labels.scatter_reduce_(0, labels[second].clone(), low, "amin")
                labels = labels[labels]
                if torch.equal(labels, before):
                    break
        while not torch.equal(labels, labels[labels]):
            labels = labels[labels]
        return labels
