"""Find out how much accuracy each layer costs when it alone is pruned."""

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from gsdist.compaction import trace_channels
from gsdist.workloads.pruning.config import PruningConfig
from gsdist.workloads.pruning.criterion import scores_of
from gsdist.workloads.pruning.scope import choose
from gsdist.workloads.pruning.units import units_of

__all__ = ["sensitivity"]


def sensitivity(
    model: nn.Module,
    example: tuple[Any, ...],
    config: PruningConfig,
    measure: Callable[[nn.Module], float],
) -> dict[str, float]:
    """Return by layer what `measure` loses when the configured share of that layer's channels is zero.

    Source: Li et al., Pruning Filters for Efficient ConvNets, 2017, section 3.2. The model is left as it is.

    Raises:
        UnsupportedSetup: the network cannot be followed or has nothing to prune.
    """
    graph = trace_channels(model, example)
    units = units_of(model, graph, config)
    scores = scores_of(model, graph, units, config)
    chosen = choose(units, scores, config.rate, config)
    whole = measure(model)
    lost = {}
    for unit, pruned in zip(units, chosen, strict=True):
        masked = copy.deepcopy(model)
        factors = pruned.new_ones(unit.size).double()
        factors[pruned] = 0.0
        unit.scale(dict(masked.named_parameters()), factors)
        lost[unit.name] = whole - measure(masked)
    return lost
