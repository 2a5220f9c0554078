"""Count multiply-accumulates and parameters exactly, for any choice of kept channels.

Two conventions are in use. `macs` counts convolutions and linear layers. `macs_with_norm` adds two
operations for each element that a normalisation puts out, as the tables of network slimming and its
followers do.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gsdist.compaction.graph import ChannelGraph
from gsdist.compaction.groups import ChannelGroup, Role

__all__ = ["Counts", "count"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Hold what one image costs and what the network holds."""

    macs: int
    macs_with_norm: int
    parameters: int


def count(
    graph: ChannelGraph,
    groups: list[ChannelGroup],
    kept: Mapping[str, Tensor] | None = None,
    *,
    shrink_residual: bool = True,
) -> Counts:
    """Count the network that is left when only some channels of the groups are kept.

    Args:
        graph: the traced network.
        groups: its channel groups.
        kept: by group, a bool tensor `(size,)`; groups that are not named stay whole.
        shrink_residual: whether convolutions whose channels end in a sum shrink, too (layout "scatter").
    """
    removed = _removed(groups, kept or {}, shrink_residual)
    macs = norm_operations = parameters = 0
    for layer in graph.layers.values():
        out = layer.out_channels - removed.get((layer.name, layer.role), 0)
        if layer.role == "norm":
            norm_operations += 2 * out * layer.positions
            parameters += 2 * out
            continue
        inputs = layer.in_channels
        if layer.role == "out":
            inputs -= removed.get((layer.name, "in"), 0)
        weights = out * inputs * layer.kernel
        macs += weights * layer.positions
        parameters += weights + (out if layer.bias else 0)
    return Counts(macs=macs, macs_with_norm=macs + norm_operations, parameters=parameters)


def _removed(
    groups: list[ChannelGroup], kept: Mapping[str, Tensor], shrink_residual: bool
) -> dict[tuple[str, Role], int]:
    """Count removed positions by module and role."""
    removed: dict[tuple[str, Role], int] = {}
    for group in groups:
        if group.name not in kept or (group.residual and not shrink_residual):
            continue
        gone = ~torch.as_tensor(kept[group.name], dtype=torch.bool)
        for part in group.slices:
            # Behind a sum's restored width all layers stay wide.
            if not group.residual or part.role == "out" or part.module == group.expands_at:
                key = (part.module, part.role)
                removed[key] = removed.get(key, 0) + len(part.positions_of(gone))
    return removed
