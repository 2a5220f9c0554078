"""Cut channels out of a network's layers."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gsdist.compaction.expansion import ExpandedBatchNorm2d, ExpandedConv2d
from gsdist.compaction.graph import ChannelGraph
from gsdist.compaction.groups import ChannelGroup, Role
from gsdist.compaction.plan import Plan, coupling_of
from gsdist.models.layers import ChannelPadding

__all__ = ["CompactModel", "cut_channels"]

_Keeps = dict[tuple[str, Role], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactModel:
    """Hold a smaller network and where its parameters lie in those of the larger one."""

    model: nn.Module
    kept: Mapping[str, tuple[Tensor | None, ...]]
    """As of `gsdist.workloads.LayoutChange`."""


def cut_channels(model: nn.Module, graph: ChannelGraph, plan: Plan) -> CompactModel:
    """Return a copy of the network without the channels that the plan does not keep.

    Parameters and buffers keep their names. The larger network stays as it is.

    Raises:
        ConfigError: the plan is of another network.
    """
    groups = graph.channel_groups(coupling_of(plan.layout))
    masks = plan.masks(groups)
    widths = graph.widths()
    keeps = {key: torch.ones(width, dtype=torch.bool) for key, width in widths.items()}
    for group in groups:
        if group.name in masks and not (group.residual and plan.layout == "internal"):
            _note(group, masks[group.name], keeps)
    keeps = {key: keep for key, keep in keeps.items() if not keep.all()}
    smaller = copy.deepcopy(model)
    kept: dict[str, tuple[Tensor | None, ...]] = {
        name: (None,) * parameter.ndim for name, parameter in model.named_parameters()
    }
    for name, module in list(model.named_modules()):
        roles = {role: keep for (owner, role), keep in keeps.items() if owner == name}
        if roles:
            _cut_module(smaller, name, module, roles, kept)
    for group in groups:
        if group.residual and group.expands_at and group.name in masks and plan.layout == "scatter":
            _expand(smaller, group.expands_at, masks[group.name])
    return CompactModel(model=smaller, kept=kept)


def _note(group: ChannelGroup, keep: Tensor, keeps: _Keeps) -> None:
    """Clear the positions of the group's removed channels in the bool tensor of each module and role."""
    for part in group.slices:
        if not group.residual or part.role == "out" or part.module == group.expands_at:
            keeps[part.module, part.role][part.positions_of(~keep)] = False


def _cut_module(
    smaller: nn.Module,
    name: str,
    original: nn.Module,
    roles: Mapping[Role, Tensor],
    kept: dict[str, tuple[Tensor | None, ...]],
) -> None:
    module: Any = smaller.get_submodule(name)
    rows = next((roles[role] for role in ("out", "norm", "depthwise") if role in roles), None)
    columns = roles.get("in")
    row_index = None if rows is None else rows.nonzero()[:, 0]
    column_index = None if columns is None else columns.nonzero()[:, 0]
    for key, parameter in original.named_parameters(recurse=False):
        index = (row_index, column_index)[: parameter.ndim]
        index += (None,) * (parameter.ndim - len(index))
        kept[f"{name}.{key}"] = index
        values = _select(parameter.detach(), index)
        setattr(module, key, nn.Parameter(values, requires_grad=parameter.requires_grad))
    for key, buffer in original.named_buffers(recurse=False):
        if buffer.ndim:
            setattr(module, key, _select(buffer, (row_index,)))
    _set_widths(module, rows, columns, roles.get("padding"))


def _set_widths(
    module: Any, rows: Tensor | None, columns: Tensor | None, padding: Tensor | None
) -> None:
    if isinstance(module, nn.Conv2d):
        depthwise = module.groups > 1
        if rows is not None:
            module.out_channels = int(rows.sum())
            if depthwise:
                module.in_channels = module.groups = module.out_channels
        if columns is not None:
            module.in_channels = int(columns.sum())
    elif isinstance(module, nn.Linear) and columns is not None:
        module.in_features = int(columns.sum())
    elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and rows is not None:
        module.num_features = int(rows.sum())
    elif isinstance(module, ChannelPadding) and padding is not None:
        module.before, module.after = (
            int(padding[: module.before].sum()),
            int(padding[len(padding) - module.after :].sum()),
        )


def _select(tensor: Tensor, index: tuple[Tensor | None, ...]) -> Tensor:
    for dimension, chosen in enumerate(index):
        if chosen is not None:
            tensor = tensor.index_select(dimension, chosen.to(tensor.device))
    return tensor.clone()


def _expand(smaller: nn.Module, name: str, keep: Tensor) -> None:
    """Put in place of a layer the same one that restores the sum's width."""
    layer = smaller.get_submodule(name)
    expanded: nn.Module
    if isinstance(layer, nn.Conv2d):
        expanded = ExpandedConv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            bias=layer.bias is not None,
            padding_mode=layer.padding_mode,
            kept=keep,
        )
    else:
        assert isinstance(layer, nn.BatchNorm2d)
        expanded = ExpandedBatchNorm2d(
            layer.num_features, eps=layer.eps, momentum=layer.momentum, kept=keep
        )
    weight = next(layer.parameters())
    expanded.to(weight.device, weight.dtype)
    expanded.load_state_dict(layer.state_dict())
    expanded.train(layer.training)
    smaller.set_submodule(name, expanded)
