"""See whether one pair of CPMC's weights meets all three published pairs of parameters and FLOPs.

CPMC's formulas were not at hand; what is published are parameters and FLOPs of three pruned networks. Each
trained network is pruned until its parameters are the published ones, for every pair of weights in a grid;
the table shows how far its FLOPs then are. FLOPs are multiply-accumulates with two operations per element
of a normalisation, as in the source of these figures.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from torch import nn

from gsdist.models import build_model
from gsdist.workloads.pruning import PRESETS, Pruner
from gsdist.workloads.weights import load_weights

__all__ = ["PUBLISHED", "Calibrated", "calibrate", "table"]

_GRID = (0.0, 0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Hold what is published of one pruned network; millions, and the deviation that is accepted."""

    parameters: float
    flops: float
    accepted: float


PUBLISHED: Mapping[str, Published] = {
    "vgg16-cifar": Published(parameters=1.04, flops=106.68, accepted=0.15),
    "densenet40-cifar": Published(parameters=0.42, flops=121.73, accepted=0.20),
    "preresnet164": Published(parameters=0.75, flops=144.02, accepted=0.20),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """Hold one network's result for one pair of weights."""

    model: str
    cost_weight: float
    size_weight: float
    parameters: float
    flops: float
    deviation: float
    """Of the FLOPs from the published ones, as a share of these."""
    accepted: bool


def calibrate(weights: Mapping[str, Path]) -> Iterator[Calibrated]:
    """Prune each named network from its file of weights, for every pair of the grid."""
    for name, path in weights.items():
        published = PUBLISHED[name]
        model = build_model(name, num_classes=10)
        load_weights(model, path)
        for cost, size in product(_GRID, _GRID):
            parameters, flops = _prune(model, published.parameters * 1e6, cost, size)
            deviation = flops / (published.flops * 1e6) - 1
            yield Calibrated(
                model=name,
                cost_weight=cost,
                size_weight=size,
                parameters=parameters / 1e6,
                flops=flops / 1e6,
                deviation=deviation,
                accepted=abs(deviation) <= published.accepted,
            )


def _prune(model: nn.Module, wanted: float, cost: float, size: float) -> tuple[int, int]:
    total = sum(parameter.numel() for parameter in model.parameters())
    config = replace(
        PRESETS["cpmc"],
        target="parameters",
        rate=1 - wanted / total,
        cost_weight=cost,
        size_weight=size,
        min_keep=0.02,
    )
    pruner = Pruner(model, (torch.zeros(1, 3, 32, 32),), config, total_events=1)
    left = pruner.counts_if_pruned()
    return left.parameters, left.macs_with_norm


def table(rows: list[Calibrated]) -> str:
    """Print a line per pair of weights, best first: the deviation of each network's FLOPs."""
    models = list(dict.fromkeys(row.model for row in rows))
    pairs: dict[tuple[float, float], dict[str, Calibrated]] = {}
    for row in rows:
        pairs.setdefault((row.cost_weight, row.size_weight), {})[row.model] = row
    ranked = sorted(pairs, key=lambda pair: max(abs(r.deviation) for r in pairs[pair].values()))
    lines = [f"{'w_c':>5}{'w_q':>6}" + "".join(f"{name:>20}" for name in models)]
    for pair in ranked:
        cells = (
            f"{row.flops:9.1f} M {row.deviation:+6.1%}{'*' if row.accepted else ' '}"
            for row in pairs[pair].values()
        )
        lines.append(f"{pair[0]:5.2f}{pair[1]:6.2f}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(["FLOPs at the published parameters; * within the accepted band", *lines])
