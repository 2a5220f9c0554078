"""Name what is pruned one by one: the filters of a convolution, or its single weights."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gsdist.compaction import ChannelGraph, ChannelGroup, coupling_of
from gsdist.errors import UnsupportedSetup
from gsdist.workloads.pruning.config import PruningConfig

__all__ = ["Part", "Unit", "total_size", "units_of"]

_SHORTCUTS = ("shortcut", "downsample", "projection")
"""Names of the modules that hold a shortcut's convolution, here and in torchvision."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """Tie candidates to rows of a parameter, or to its single elements."""

    parameter: str
    candidates: Tensor
    """`(n,)` int64."""
    rows: Tensor
    """`(n,)` int64."""
    elements: bool = False
    """Whether the rows are elements of the flattened parameter."""

    def view(self, tensor: Tensor) -> Tensor:
        """Return the tensor, in the parameter's shape, so that its first dimension is that of the rows."""
        return tensor.view(-1) if self.elements else tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Unit:
    """Hold candidates that are ranked together when the scope is local."""

    name: str
    size: int
    parts: tuple[Part, ...]
    """What is multiplied when a candidate is pruned."""
    filters: tuple[Part, ...]
    """Those of `parts` by which candidates are ranked: weights of the convolutions."""
    group: ChannelGroup | None
    """Where the candidates are channels: all that belongs to them."""

    def scale(self, parameters: dict[str, nn.Parameter], factors: Tensor) -> None:
        """Multiply every candidate's parameters by its float factor; `(size,)`."""
        with torch.no_grad():
            for part in self.parts:
                rows = part.view(parameters[part.parameter])
                changed = factors[part.candidates] != 1  # others stay what they are, bit for bit
                chosen = part.rows[changed]
                scaled = factors[part.candidates[changed]].to(rows)
                rows[chosen] = rows[chosen] * scaled.view(-1, *[1] * (rows.ndim - 1))

    def longest_removal(self, order: Tensor) -> Tensor:
        """Shorten `order` so that no layer is left with nothing."""
        if self.group is not None:
            return self.group.largest_removal(order)
        return order[: self.size - 1]


def units_of(model: nn.Module, graph: ChannelGraph, config: PruningConfig) -> list[Unit]:
    """List what the settings let be pruned, in the order of the convolutions.

    Raises:
        UnsupportedSetup: there is nothing.
    """
    if config.granularity == "weight":
        names = [f"{name}.weight" for name in graph.made if not _skipped(name, config)]
        units = [_weights(name, model.get_parameter(name).numel()) for name in names]
    else:
        units = [
            _filters(model, group, config)
            for group in graph.channel_groups(coupling_of(config.layout))
            if not _skipped(group.name, config)
            and not (group.residual and config.layout == "internal")
        ]
    if not units:
        raise UnsupportedSetup(
            f"{type(model).__name__} has no convolution that could be pruned with "
            f"layout={config.layout!r}; pruning is for convolutional networks"
        )
    return units


def _skipped(name: str, config: PruningConfig) -> bool:
    return config.skip_shortcuts and any(part in _SHORTCUTS for part in name.split("."))


def _weights(name: str, size: int) -> Unit:
    every = torch.arange(size)
    part = Part(parameter=name, candidates=every, rows=every, elements=True)
    return Unit(name=name, size=size, parts=(part,), filters=(part,), group=None)


def _filters(model: nn.Module, group: ChannelGroup, config: PruningConfig) -> Unit:
    made = [
        Part(parameter=f"{part.module}.weight", candidates=part.channels, rows=part.positions)
        for part in group.of_role("out")
    ]
    shifts = group.of_role("out", "depthwise")
    names = {f"{part.module}.bias": part for part in shifts if _has_bias(model, part.module)}
    if config.scale_norm:
        for part in group.of_role("norm"):
            names |= {f"{part.module}.{kind}": part for kind in ("weight", "bias")}
    more = [
        Part(parameter=name, candidates=part.channels, rows=part.positions)
        for name, part in names.items()
    ]
    return Unit(
        name=group.name, size=group.size, parts=(*made, *more), filters=tuple(made), group=group
    )


def _has_bias(model: nn.Module, module: str) -> bool:
    return model.get_submodule(module).bias is not None


def total_size(units: Iterable[Unit]) -> int:
    """Return the number of candidates of all units."""
    return sum(unit.size for unit in units)
