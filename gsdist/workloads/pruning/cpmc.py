"""Rank channels by what their removal saves and loses: CPMC, reconstructed.

Source: Yan et al., Channel Pruning Guided by Multi-Criteria, arXiv 2011.03240. Only the abstract was at
hand. It says that a channel's filter and the slices of all its readers count together, that weight
values, computation and parameters are judged, normalised and ranked over the whole network. Norm,
normaliser and combination are this module's choice.

| symbol | here |
| --- | --- |
| V_g | `value`: L1 norm of the filter and of all slices that read the channel |
| C_g | `macs`: multiply-accumulates that go with the channel |
| Q_g | `parameters` that go with it |
| w_c, w_q | `cost_weight`, `size_weight`; the weight of V_g is 1 |
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gsdist.compaction import ChannelGraph, ChannelGroup

__all__ = ["Savings", "savings", "scores"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Savings:
    """Hold, per channel of a group, float64 tensors `(size,)`."""

    value: Tensor
    macs: Tensor
    parameters: Tensor


def scores(
    model: nn.Module,
    graph: ChannelGraph,
    groups: Sequence[ChannelGroup],
    *,
    cost_weight: float,
    size_weight: float,
) -> list[Tensor]:
    """Score every channel: value less cost less size, each scaled to 0..1 over the whole network."""
    found = [savings(model, graph, group) for group in groups]
    value = _normalised([one.value for one in found])
    macs = _normalised([one.macs for one in found])
    parameters = _normalised([one.parameters for one in found])
    combined = value - cost_weight * macs - size_weight * parameters
    return list(torch.split(combined, [group.size for group in groups]))


def savings(model: nn.Module, graph: ChannelGraph, group: ChannelGroup) -> Savings:
    """Add up, over all layers that a channel passes, what goes when it is removed.

    Widths are those of the network as it is. A channel that ends in a sum takes along its filter and
    what is normalised before the sum.
    """
    value, macs, parameters = (torch.zeros(group.size, dtype=torch.float64) for _ in range(3))
    for part in group.slices:
        if group.residual and part.role != "out" and part.module != group.expands_at:
            continue
        if part.role == "padding":
            continue
        layer = graph.layers[part.module]
        if part.role == "norm":
            per_position, positions = 2, 0
        elif part.role == "in":
            per_position, positions = layer.out_channels * layer.kernel, layer.positions
        else:
            per_position, positions = layer.in_channels * layer.kernel, layer.positions
        shift = int(layer.bias and part.role in ("out", "depthwise"))
        each = torch.ones(len(part.channels), dtype=torch.float64)
        macs.index_add_(0, part.channels, each * per_position * positions)
        parameters.index_add_(0, part.channels, each * (per_position + shift))
        if part.role in ("out", "in"):
            weight = model.get_parameter(f"{part.module}.weight").detach().double().cpu().abs()
            along = 0 if part.role == "out" else 1
            norms = weight.transpose(0, along).flatten(1).sum(1)
            value.index_add_(0, part.channels, norms[part.positions])
    return Savings(value=value, macs=macs, parameters=parameters)


def _normalised(parts: list[Tensor]) -> Tensor:
    joined = torch.cat(parts)
    low, high = joined.min(), joined.max()
    return (joined - low) / (high - low) if high > low else torch.zeros_like(joined)
