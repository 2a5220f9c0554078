"""Measure what each method takes per step: its computing on this machine, and its exchange in a group."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gsdist.collectives import LocalGroup, all_reduce_sum, gather_json
from gsdist.collectives.cost_model import Link
from gsdist.errors import ConfigError
from gsdist.planner.candidates import Candidate
from gsdist.planner.traffic import mean_seconds, steps_of
from gsdist.planner.trial import Trial
from gsdist.reducers import ReducerConfig, lay_out

__all__ = ["Measured", "measure_alone", "measure_in_group", "sample"]

_CPU = torch.device("cpu")
_SAMPLE = 2_000_000
"""Parameters of a larger model that are measured; computing grows with their number."""
_LONGEST_TRIAL = 0.1
"""Seconds on the wire that an exchange may be expected to take and is still tried: what longer ones take is a
matter of bytes, and trying them would take long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Hold what was measured of a method."""

    local_seconds: float
    """Its own computing per step."""
    unmodelled_seconds: float = 0.0
    """What a step's exchange took beside that and what the cost model says of the wire; may be negative."""


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


def measure_alone(
    candidates: Iterable[Candidate],
    shapes: Mapping[str, Sequence[int]],
    device: torch.device = _CPU,
) -> dict[str, Measured]:
    """Return, by name, each method's own computing on a model with parameters of these shapes.

    One worker exchanges random gradients with itself; of a large model some parameters, the rest in
    proportion. A method that cannot serve these parameters with its settings is left out.
    """
    parameters = sample(shapes, device=device)
    measured = {}
    for candidate in candidates:
        with suppress(ConfigError):
            trial = Trial(candidate.config, parameters, _alone())
            local = trial.typical([step.local_seconds for step in trial.run()])
            measured[candidate.name] = Measured(local_seconds=_scale(shapes, parameters) * local)
    return measured


def measure_in_group(
    candidates: Iterable[Candidate],
    shapes: Mapping[str, Sequence[int]],
    link: Link,
    group: dist.ProcessGroup,
    device: torch.device = _CPU,
) -> dict[str, Measured]:
    """Return the same of workers that compute at once, as those on shared processors do, and exchange.

    All ranks must call this, with the group's probed link, and get the same answer. Of each step the
    slowest worker's computing counts. Where the cost model expects a quick exchange the workers really
    exchange their gradients, which tells what the model misses; else each exchanges with itself.

    Raises:
        CollectiveError: the backend failed or its deadline passed.

    Collectives: those of some exchanges of every method, or a small all-reduce before each of them; two
    all-gathers per method.
    """
    parameters = sample(shapes, device=device)
    measured = {}
    for candidate in candidates:
        with suppress(ConfigError):
            local, unmodelled = _together(candidate.config, parameters, link, group)
            measured[candidate.name] = Measured(
                local_seconds=_scale(shapes, parameters) * local, unmodelled_seconds=unmodelled
            )
    return measured


def _together(
    config: ReducerConfig, parameters: Mapping[str, Tensor], link: Link, group: dist.ProcessGroup
) -> tuple[float, float]:
    """Return seconds of local computing on these parameters, and those that the cost model misses."""
    ranks = dist.get_world_size(group)
    wire = mean_seconds(steps_of(config, lay_out(config, parameters), ranks), ranks, link)
    tried = wire <= _LONGEST_TRIAL

    def meet() -> None:
        device = next(iter(parameters.values())).device
        all_reduce_sum(
            torch.zeros(1, device=device), group, phase="the measurement of local computing"
        )

    trial = Trial(config, parameters, group if tried else _alone())
    own = trial.run() if tried else trial.run(meet)
    everyone = gather_json([[step.seconds, step.local_seconds] for step in own], group)
    # Of each step the slowest worker's computing counts, and it is not always the same one; an exchange that
    # one rank enters late is short to it and long to the others.
    steps = list(zip(*everyone, strict=True))
    local = trial.typical([max(local for _, local in ranks) for ranks in steps])
    if not tried:
        return local, 0.0
    seconds = trial.typical([statistics.fmean(seconds for seconds, _ in ranks) for ranks in steps])
    return local, seconds - wire - local


def _alone() -> dist.ProcessGroup:
    (group,) = LocalGroup.create(1)
    return group


def _scale(shapes: Mapping[str, Sequence[int]], parameters: Mapping[str, Tensor]) -> float:
    total = sum(torch.Size(shape).numel() for shape in shapes.values())
    return total / sum(parameter.numel() for parameter in parameters.values())
