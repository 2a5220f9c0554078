"""Decide which channels a smaller network keeps, and write that down."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from gsdist.compaction.graph import ChannelGraph
from gsdist.compaction.groups import ChannelGroup, Coupling
from gsdist.errors import ConfigError

__all__ = ["Layout", "Plan", "check_layout", "coupling_of", "plan_from_zeros"]

Layout = Literal["internal", "stage", "scatter"]
"""What becomes of convolutions whose outputs are added up: they keep their width ("internal"), they all
lose the same channels ("stage"), or each loses its own and the sum's width is restored ("scatter")."""


def check_layout(layout: str) -> None:
    """Refuse what is not a `Layout`.

    Raises:
        ConfigError: an unknown layout.
    """
    if layout not in get_args(Layout):
        raise ConfigError(f"layout must be one of {', '.join(get_args(Layout))}, got {layout!r}")


def coupling_of(layout: Layout) -> Coupling:
    """Return which convolutions share channels in a layout."""
    return "stage" if layout == "stage" else "layer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Say which channels of each group a smaller network keeps."""

    layout: Layout
    kept: Mapping[str, tuple[int, ...]]
    """By group, ascending. Groups that are not named stay whole."""

    def __post_init__(self) -> None:
        """Check the layout and that every group keeps something.

        Raises:
            ConfigError: an unknown layout or a group without channels.
        """
        check_layout(self.layout)
        for name, channels in self.kept.items():
            if not channels or list(channels) != sorted(set(channels)):
                raise ConfigError(
                    f"the plan keeps channels {list(channels)[:8]} of {name!r}; expected at least one, "
                    "each once, ascending"
                )

    def masks(self, groups: list[ChannelGroup]) -> dict[str, Tensor]:
        """Return a bool tensor `(size,)` for each group that shrinks.

        Raises:
            ConfigError: the plan names a group or channel that the network does not have.
        """
        sizes = {group.name: group.size for group in groups}
        masks = {}
        for name, channels in self.kept.items():
            if name not in sizes or channels[-1] >= sizes[name] or channels[0] < 0:
                raise ConfigError(
                    f"the plan keeps channels up to {channels[-1]} of {name!r}, the network has "
                    f"{sizes.get(name, 0)} there; it was made for another network or layout"
                )
            masks[name] = torch.zeros(sizes[name], dtype=torch.bool)
            masks[name][list(channels)] = True
        return masks

    def to_mapping(self) -> dict[str, Any]:
        """Return the plan as JSON knows it."""
        return {
            "layout": self.layout,
            "kept": {name: list(channels) for name, channels in self.kept.items()},
        }

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any]) -> "Plan":
        """Build a plan from what `to_mapping` returned.

        Raises:
            ConfigError: no such mapping.
        """
        try:
            kept = {str(name): tuple(map(int, kept)) for name, kept in content["kept"].items()}
            return cls(layout=content["layout"], kept=kept)
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"not a plan of kept channels: {error}") from error


def plan_from_zeros(model: nn.Module, graph: ChannelGraph, layout: Layout) -> Plan:
    """Keep every channel that is not exactly zero; what masks left in the weights is all it needs.

    A channel is zero when the filters that make it, and scale and shift of what normalises it, are.

    Raises:
        ConfigError: an unknown layout.
    """
    check_layout(layout)
    kept = {}
    for group in graph.channel_groups(coupling_of(layout)):
        if group.residual and layout == "internal":
            continue
        zero = _zero_channels(model, group)
        removable = group.largest_removal(zero.nonzero()[:, 0])
        if len(removable):
            keep = torch.ones(group.size, dtype=torch.bool)
            keep[removable] = False
            kept[group.name] = tuple(keep.nonzero()[:, 0].tolist())
    return Plan(layout=layout, kept=kept)


def _zero_channels(model: nn.Module, group: ChannelGroup) -> Tensor:
    """Return a bool tensor `(size,)`: whether a channel is zero whatever the input."""
    zero = torch.ones(group.size, dtype=torch.bool)
    for part in group.of_role("out", "norm", "depthwise"):
        module = model.get_submodule(part.module)
        rows: list[Any] = [module.bias] if module.bias is not None else []
        if part.role != "depthwise":  # whose kernel, applied to zero, does not matter
            rows.append(module.weight)
        for tensor in rows:
            values = tensor.detach().reshape(len(tensor), -1)[part.positions]
            zero[part.channels[(values != 0).any(1).cpu()]] = False
    return zero
