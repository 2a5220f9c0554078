"""Measure what each method takes per step: its computing on this machine, and its exchange in a group."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from statistics import fmean

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gsdist.collectives import LocalGroup, all_reduce_sum, gather_json
from gsdist.collectives.cost_model import Link
from gsdist.errors import ConfigError
from gsdist.planner.candidates import Candidate
from gsdist.planner.traffic import mean_seconds, steps_of
from gsdist.planner.trial import Step, Trial, typical
from gsdist.reducers import ReducerConfig, lay_out

__all__ = ["Measured", "measure_alone", "measure_in_group", "sample"]

_CPU = torch.device("cpu")
_SAMPLE = 10_000_000
"""Parameters of a larger model that are measured: buffers of so many are already too large to be kept by the
allocator, as those of larger models are."""
_LONGEST_TRIAL = 0.1
"""Seconds on the wire that an exchange may be expected to take and is still tried: what longer ones take is a
matter of bytes, and trying them would take long."""
_TRIAL_SECONDS, _TRIAL_NUMBERS, _TRIAL_STEPS = 0.25, 15_000_000, 20
"""At most to be spent on the wire of a trial, as expected, to be exchanged in it, and steps of it; a few
steps of each kind are made in any case."""
_ROUNDS = 3
"""Trials of every method."""
_Steps = tuple[Mapping[int, int], list[tuple[Step, ...]]]
"""A method's period, and every rank's part in each step of its trials."""


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

    def run(candidate: Candidate) -> _Steps:
        trial = Trial(candidate.config, parameters, _alone())
        return trial.period, [(step,) for step in trial.run()]

    return {
        candidate.name: Measured(
            local_seconds=_scale(shapes, parameters) * _computing(period, steps)
        )
        for candidate, (period, steps) in _in_rounds(candidates, run).items()
    }


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

    Collectives: per round and method those of some exchanges, or a small all-reduce before each of them, and
    two all-gathers.
    """
    parameters = sample(shapes, device=device)
    scale = _scale(shapes, parameters)
    ranks = dist.get_world_size(group)

    @cache
    def wire_seconds(config: ReducerConfig) -> float:
        return mean_seconds(steps_of(config, lay_out(config, parameters), ranks), ranks, link)

    def run(candidate: Candidate) -> _Steps:
        config = candidate.config
        return _run_in_group(config, parameters, wire_seconds(config), group)

    return {
        candidate.name: _measured(period, steps, wire_seconds(candidate.config), scale)
        for candidate, (period, steps) in _in_rounds(candidates, run).items()
    }


def _in_rounds(
    candidates: Iterable[Candidate], run: Callable[[Candidate], _Steps]
) -> dict[Candidate, _Steps]:
    """Try all methods in turn, some times over, so that none meets only a slow time of the machine."""
    tried: dict[Candidate, _Steps] = {}
    for candidate in _ROUNDS * tuple(candidates):
        with suppress(ConfigError):
            period, steps = run(candidate)
            _, earlier = tried.get(candidate, (period, []))
            tried[candidate] = period, earlier + steps
    return tried


def _run_in_group(
    config: ReducerConfig,
    parameters: Mapping[str, Tensor],
    wire_seconds: float,
    group: dist.ProcessGroup,
) -> _Steps:
    if wire_seconds > _LONGEST_TRIAL:
        trial = Trial(config, parameters, _alone())
        word = next(iter(parameters.values())).new_zeros(1)
        return trial.period, _share(trial.run(meet=lambda: _meet(word, group)), group)
    trial = Trial(config, parameters, group)
    numbers = sum(parameter.numel() for parameter in parameters.values())
    limits = _TRIAL_STEPS, _TRIAL_NUMBERS / numbers, _TRIAL_SECONDS / max(wire_seconds, 1e-9)
    return trial.period, _share(trial.run(least=int(min(limits))), group)


def _measured(
    period: Mapping[int, int], steps: Sequence[tuple[Step, ...]], wire_seconds: float, scale: float
) -> Measured:
    local, unmodelled = _computing(period, steps), 0.0
    if wire_seconds <= _LONGEST_TRIAL:
        # An exchange that one rank enters late is short to it and long to the others.
        whole = [(every[0].kind, fmean(step.seconds for step in every)) for every in steps]
        unmodelled = typical(period, whole) - wire_seconds - local
    return Measured(local_seconds=scale * local, unmodelled_seconds=unmodelled)


def _share(own: Sequence[Step], group: dist.ProcessGroup) -> list[tuple[Step, ...]]:
    """Return every rank's part in each step."""
    everyone = gather_json([asdict(step) for step in own], group)
    return [tuple(Step(**step) for step in every) for every in zip(*everyone, strict=True)]


def _computing(period: Mapping[int, int], steps: Iterable[tuple[Step, ...]]) -> float:
    """Return the slowest worker's seconds; it is not the same one in every step."""
    return typical(
        period, ((every[0].kind, max(step.local_seconds for step in every)) for every in steps)
    )


def _meet(word: Tensor, group: dist.ProcessGroup) -> None:
    all_reduce_sum(word, group, phase="the measurement of local computing")


def _alone() -> dist.ProcessGroup:
    (group,) = LocalGroup.create(1)
    return group


def _scale(shapes: Mapping[str, Sequence[int]], parameters: Mapping[str, Tensor]) -> float:
    total = sum(torch.Size(shape).numel() for shape in shapes.values())
    return total / sum(parameter.numel() for parameter in parameters.values())
