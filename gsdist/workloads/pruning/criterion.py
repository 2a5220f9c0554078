"""Score the filters of a network; those with the lowest scores are pruned.

Sources: L1 norm, Li et al., Pruning Filters for Efficient ConvNets, 2017; L2 norm, He et al., Soft Filter
Pruning, 2018; distance to all other filters of the layer, He et al., Filter Pruning via Geometric
Median, 2019; scale of the normalisation, Liu et al., Network Slimming, 2017.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from gsdist.compaction import ChannelGraph
from gsdist.errors import UnsupportedSetup
from gsdist.workloads.pruning import cpmc, pfgdf
from gsdist.workloads.pruning.config import PruningConfig
from gsdist.workloads.pruning.units import Unit

__all__ = ["scores_of"]


def scores_of(
    model: nn.Module, graph: ChannelGraph, units: Sequence[Unit], config: PruningConfig
) -> list[Tensor]:
    """Return a float64 tensor `(size,)` on the CPU for each unit.

    Raises:
        UnsupportedSetup: criterion "scale" where no normalisation follows.
    """
    if config.criterion == "cpmc":
        weights = {"cost_weight": config.cost_weight, "size_weight": config.size_weight}
        return cpmc.scores(model, graph, [unit.group for unit in units if unit.group], **weights)
    if config.criterion == "gaussian":
        norms = [_l1(model, unit) for unit in units]
        return [pfgdf.closeness(values, config.tails) for values in norms]
    return [_CRITERIA[config.criterion](model, unit) for unit in units]


def _rows(model: nn.Module, unit: Unit) -> list[tuple[Tensor, Tensor]]:
    """Return, per convolution, candidates and their weights `(n, k)` in float64 on the CPU."""
    found = []
    for part in unit.filters:
        weight = model.get_parameter(part.parameter).detach().double().cpu()
        rows = part.view(weight)[part.rows]
        found.append((part.candidates, rows.reshape(len(rows), -1)))
    return found


def _l1(model: nn.Module, unit: Unit) -> Tensor:
    score = torch.zeros(unit.size, dtype=torch.float64)
    for candidates, rows in _rows(model, unit):
        score.index_add_(0, candidates, rows.abs().sum(1))
    return score


def _l2(model: nn.Module, unit: Unit) -> Tensor:
    score = torch.zeros(unit.size, dtype=torch.float64)
    for candidates, rows in _rows(model, unit):
        score.index_add_(0, candidates, rows.square().sum(1))
    return score.sqrt()


def _fpgm(model: nn.Module, unit: Unit) -> Tensor:
    """Sum each filter's distances to all others of its layer."""
    score = torch.zeros(unit.size, dtype=torch.float64)
    for candidates, rows in _rows(model, unit):
        # The direct way: with a matrix product, equal filters would not be at distance 0.
        distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
        score.index_add_(0, candidates, distances.sum(1))
    return score


def _scale(model: nn.Module, unit: Unit) -> Tensor:
    norms = unit.group.of_role("norm") if unit.group else []
    if not norms:
        raise UnsupportedSetup(
            f"no normalisation follows convolution {unit.name!r}, so it has no scale to rank by; choose "
            "layout='internal' or another criterion"
        )
    score = torch.zeros(unit.size, dtype=torch.float64)
    for part in norms:
        scale = model.get_parameter(f"{part.module}.weight").detach().double().cpu()
        score.index_add_(0, part.channels, scale.abs()[part.positions])
    return score


_CRITERIA: dict[str, Callable[[nn.Module, Unit], Tensor]] = {
    "l1": _l1,
    "l2": _l2,
    "fpgm": _fpgm,
    "scale": _scale,
}
