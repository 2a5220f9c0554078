"""Choose what is pruned: the lowest scores of each layer, or of the whole network."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gsdist.compaction import ChannelGraph, Counts, count
from gsdist.errors import ConfigError
from gsdist.workloads.pruning.config import PruningConfig
from gsdist.workloads.pruning.pfgdf import parse_intervals
from gsdist.workloads.pruning.units import Unit

__all__ = ["choose", "number_pruned", "strength_for", "tally"]

_ROUNDING = 1e-9
"""Added before rounding down, so that 0.2 of 100 is 20."""
_HALVINGS = 40


def number_pruned(size: int, share: float) -> int:
    """Return the number of candidates that a share of them is, rounded down."""
    return math.floor(size * share + _ROUNDING)


def choose(
    units: Sequence[Unit], scores: Sequence[Tensor], share: float, config: PruningConfig
) -> list[Tensor]:
    """Return, for each unit, the candidates to prune, lowest score first; ties go to the lower index.

    Intervals, where there are any, take the place of the share. No layer is left empty; with scope global
    and a share none loses more than `min_keep` lets it.
    """
    orders = [torch.argsort(score, stable=True) for score in scores]
    if config.intervals is not None:
        intervals = parse_intervals(config.intervals)
        numbers = [
            int((score < -intervals.get(unit.name, math.inf)).sum())
            for unit, score in zip(units, scores, strict=True)
        ]
    elif config.scope == "local":
        numbers = [number_pruned(unit.size, share) for unit in units]
    else:
        numbers = _numbers_over_all(scores, share, config.min_keep)
    return [
        unit.longest_removal(order[:number])
        for unit, order, number in zip(units, orders, numbers, strict=True)
    ]


def _numbers_over_all(scores: Sequence[Tensor], share: float, min_keep: float) -> list[int]:
    """Count how many of each unit are among the lowest scores of all that may be pruned."""
    eligible = []
    for score in scores:
        most = len(score) - max(1, math.ceil(len(score) * min_keep))
        eligible.append(score.sort(stable=True).values[:most])
    owner = torch.repeat_interleave(
        torch.arange(len(scores)), torch.tensor([len(part) for part in eligible])
    )
    wanted = number_pruned(sum(len(score) for score in scores), share)
    lowest = torch.argsort(torch.cat(eligible), stable=True)[:wanted]
    return torch.bincount(owner[lowest], minlength=len(scores)).tolist()


def tally(
    graph: ChannelGraph, units: Sequence[Unit], pruned: Sequence[Tensor], config: PruningConfig
) -> Counts:
    """Count the network that is left when the chosen channels are removed in the configured layout."""
    kept = {}
    for unit, gone in zip(units, pruned, strict=True):
        kept[unit.name] = torch.ones(unit.size, dtype=torch.bool)
        kept[unit.name][gone] = False
    groups = [unit.group for unit in units if unit.group is not None]
    return count(graph, groups, kept, shrink_residual=config.layout != "internal")


def strength_for(
    graph: ChannelGraph, units: Sequence[Unit], scores: Sequence[Tensor], config: PruningConfig
) -> float:
    """Return the share of candidates to prune so that the target is just met.

    Raises:
        ConfigError: the target cannot be met without emptying layers.
    """
    if config.target == "rate":
        return config.rate
    measure: Callable[[Counts], int] = (
        (lambda counts: counts.macs)
        if config.target == "macs"
        else lambda counts: counts.parameters
    )
    wanted = (1 - config.rate) * measure(count(graph, []))

    def left(share: float) -> int:
        return measure(tally(graph, units, choose(units, scores, share, config), config))

    low, high = 0.0, 1.0
    if left(high) > wanted:
        raise ConfigError(
            f"rate={config.rate} of the {config.target} cannot be removed: {left(high):,} of "
            f"{measure(count(graph, [])):,} are left when layers are as small as they may be; lower rate "
            "or min_keep, or choose another layout"
        )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if left(middle) <= wanted else (middle, high)
    return high
