"""Measure how long each method computes per step on this machine, without sending gradients."""

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gsdist.collectives import LocalGroup, all_reduce_sum, gather_json, wait_for_device
from gsdist.errors import ConfigError
from gsdist.planner.candidates import Candidate
from gsdist.planner.traffic import steps_of
from gsdist.reducers import (
    CompressedConfig,
    FlatLayout,
    GradientBucket,
    GradientSlice,
    Reducer,
    build_reducer,
)
from gsdist.reducers.statistics import is_wire

__all__ = ["local_seconds", "sample"]

_CPU = torch.device("cpu")
_SAMPLE = 2_000_000
"""Parameters of a larger model that are measured; computing grows with their number."""
_REPETITIONS = 7
"""Steps of each kind, at least."""


def sample(
    shapes: Mapping[str, Sequence[int]], most: int = _SAMPLE, device: torch.device = _CPU
) -> dict[str, Tensor]:
    """Return the first parameters that hold at most `most` numbers together, on a device.

    Of a first parameter that is larger there are as many rows as fit, one at least.
    """
    chosen: dict[str, Tensor] = {}
    left = most
    for name, (*sides,) in shapes.items():
        numel = torch.Size(sides).numel()
        if numel > left:
            if chosen:
                break
            sides[0] = max(1, sides[0] * left // numel)
        chosen[name] = nn.Parameter(torch.empty(sides, device=device))
        left -= chosen[name].numel()
    return chosen


def local_seconds(
    candidates: Iterable[Candidate],
    shapes: Mapping[str, Sequence[int]],
    together: dist.ProcessGroup | None = None,
    device: torch.device = _CPU,
) -> dict[str, float]:
    """Return, by name, each method's own computing per step on a model with parameters of these shapes.

    One worker exchanges random gradients with itself; of a large model some parameters, the rest in
    proportion. A method that cannot serve these parameters with its settings is left out. With a group, all
    its ranks must call this; they compute at the same time, as workers on shared processors do, and get the
    time of each step's slowest one.

    Raises:
        CollectiveError: the backend failed or its deadline passed.

    Collectives: with a group, a small all-reduce per repetition and two all-gathers per method.
    """
    parameters = sample(shapes, device=device)
    total = sum(torch.Size(shape).numel() for shape in shapes.values())
    scale = total / sum(parameter.numel() for parameter in parameters.values())
    measured = {}
    for candidate in candidates:
        with suppress(ConfigError):
            measured[candidate.name] = scale * _seconds(candidate, parameters, together)
    return measured


def _seconds(
    candidate: Candidate, parameters: Mapping[str, Tensor], together: dist.ProcessGroup | None
) -> float:
    (group,) = LocalGroup.create(1)
    config = candidate.config
    if isinstance(config, CompressedConfig):
        config = replace(config, warmup_steps=0)
    layout, reducer = build_reducer(config, parameters, group)
    gradient = torch.randn(layout.numel, generator=torch.Generator().manual_seed(0)).to(
        layout.device
    )
    _exchange(reducer, layout, gradient)
    # Kinds of steps are told apart by how many collectives they issue.
    times = {len(transfers): count for count, transfers in steps_of(config, layout, 1) if count}
    seen: dict[int, list[float]] = {kind: [] for kind in times}
    while any(len(seconds) < _REPETITIONS for seconds in seen.values()):
        if together is not None:
            all_reduce_sum(
                gradient.new_zeros(1), together, phase="the measurement of local computing"
            )
        seconds = _exchange(reducer, layout, gradient)
        seen[len(reducer.statistics().transfers_last_step)].append(seconds)
    own = list(seen.values())
    everyone = [own] if together is None else gather_json(own, together)
    # Of each step the slowest worker counts, and it is not always the same one.
    slowest = [map(max, zip(*one, strict=True)) for one in zip(*everyone, strict=True)]
    medians = map(statistics.median, slowest)
    total = sum(count * seconds for count, seconds in zip(times.values(), medians, strict=True))
    return float(total / sum(times.values()))


def _exchange(reducer: Reducer, layout: FlatLayout, gradient: Tensor) -> float:
    """Exchange one gradient; return the seconds that were not spent in collectives."""
    buffer = gradient.clone()
    parts = torch.split(buffer, [segment.numel for segment in layout])
    slices = tuple(GradientSlice(segment=s, gradient=g) for s, g in zip(layout, parts, strict=True))
    before = _wire_seconds(reducer)
    start = time.perf_counter()
    reducer.push(GradientBucket(buffer=buffer, slices=slices))
    reducer.finish()
    wait_for_device(layout.device)
    return time.perf_counter() - start - (_wire_seconds(reducer) - before)


def _wire_seconds(reducer: Reducer) -> float:
    phases = reducer.statistics().seconds
    return sum(seconds for phase, seconds in phases.items() if is_wire(phase))
