"""Measure what each method takes per step: its computing on this machine, and its exchange in a group."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gsdist.collectives import LocalGroup, all_reduce_sum, gather_json
from gsdist.collectives.cost_model import Link
from gsdist.errors import ConfigError
from gsdist.planner.candidates import Candidate
from gsdist.planner.traffic import mean_seconds, steps_of
from gsdist.planner.trial import Step, Trial
from gsdist.reducers import ReducerConfig, lay_out

__all__ = ["Measured", "measure_alone", "measure_in_group", "sample"]

_CPU = torch.device("cpu")
_SAMPLE = 10_000_000
"""Parameters of a larger model that are measured: buffers of so many are already too large to be kept by the
allocator, as those of larger models are."""
_LONGEST_TRIAL = 0.1
"""Seconds on the wire that an exchange may be expected to take and is still tried: what longer ones take is a
matter of bytes, and trying them would take long."""
_TRIAL_SECONDS, _TRIAL_NUMBERS, _TRIAL_STEPS = 0.5, 40_000_000, 40
"""At most to be spent on the wire of a trial, as expected, to be exchanged in it, and steps of it; a few
steps of each kind are made in any case."""


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
    """Return parameters that hold about `most` numbers together, of every size in proportion, on a device.

    Where each has more than twice as many, some rows of the smallest.
    """
    numel = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    share = min(1.0, most / sum(numel.values()))
    chosen, credit = set(), 0.0
    for name in sorted(shapes, key=numel.__getitem__, reverse=True):
        credit += share * numel[name]
        if credit >= numel[name] / 2:
            chosen.add(name)
            credit -= numel[name]
    sides = {name: tuple(shape) for name, shape in shapes.items() if name in chosen}
    if not sides:
        name = min(shapes, key=numel.__getitem__)
        rows, *others = shapes[name]
        sides[name] = (max(1, rows * most // numel[name]), *others)
    return {name: nn.Parameter(torch.empty(shape, device=device)) for name, shape in sides.items()}


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
            local, unmodelled = _in_group(candidate.config, parameters, link, group)
            measured[candidate.name] = Measured(
                local_seconds=_scale(shapes, parameters) * local, unmodelled_seconds=unmodelled
            )
    return measured


def _in_group(
    config: ReducerConfig, parameters: Mapping[str, Tensor], link: Link, group: dist.ProcessGroup
) -> tuple[float, float]:
    """Return seconds of local computing on these parameters, and those that the cost model misses."""
    ranks = dist.get_world_size(group)
    wire = mean_seconds(steps_of(config, lay_out(config, parameters), ranks), ranks, link)
    if wire > _LONGEST_TRIAL:
        trial = Trial(config, parameters, _alone())
        word = next(iter(parameters.values())).new_zeros(1)
        return _computing(trial, _share(trial.run(meet=lambda: _meet(word, group)), group)), 0.0
    trial = Trial(config, parameters, group)
    numbers = sum(parameter.numel() for parameter in parameters.values())
    least = int(min(_TRIAL_STEPS, _TRIAL_NUMBERS / numbers, _TRIAL_SECONDS / max(wire, 1e-9)))
    steps = _share(trial.run(least=least), group)
    local = _computing(trial, steps)
    # An exchange that one rank enters late is short to it and long to the others.
    whole = trial.typical([statistics.fmean(step.seconds for step in every) for every in steps])
    return local, whole - wire - local


def _share(own: Sequence[Step], group: dist.ProcessGroup) -> list[tuple[Step, ...]]:
    """Return every rank's part in each step."""
    everyone = gather_json([asdict(step) for step in own], group)
    return [tuple(Step(**step) for step in every) for every in zip(*everyone, strict=True)]


def _computing(trial: Trial, steps: Iterable[tuple[Step, ...]]) -> float:
    """Return the slowest worker's seconds; it is not the same one in every step."""
    return trial.typical([max(step.local_seconds for step in every) for every in steps])


def _meet(word: Tensor, group: dist.ProcessGroup) -> None:
    all_reduce_sum(word, group, phase="the measurement of local computing")


def _alone() -> dist.ProcessGroup:
    (group,) = LocalGroup.create(1)
    return group


def _scale(shapes: Mapping[str, Sequence[int]], parameters: Mapping[str, Tensor]) -> float:
    total = sum(torch.Size(shape).numel() for shape in shapes.values())
    return total / sum(parameter.numel() for parameter in parameters.values())
