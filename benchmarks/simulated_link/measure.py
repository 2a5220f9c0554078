"""Compare steps over the simulated wire with the same steps over none, and with no exchange at all."""

import copy
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from benchmarks.bootstrap import interval_of_ratio
from benchmarks.exchange.methods import METHODS
from benchmarks.gradients import SOURCES, draw_batch, network_of, workload_of
from benchmarks.simulated_link.wire import SimulatedWire
from benchmarks.step.contender import NO_COMMUNICATION, Contender
from gsdist.collectives import wait_for_device
from gsdist.collectives.cost_model import Link, Transfer
from gsdist.errors import GsdistError
from gsdist.planner.traffic import Step, mean_seconds, steps_of
from gsdist.reducers import ReducerConfig, lay_out
from gsdist.training.device import to_device
from gsdist.workloads import Workload

__all__ = ["Setting", "measure", "sends_as_planned"]

_BATCHES = 4
_WARM_UP = 3
"""DDP arranges its buckets anew after the first step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """Say what is trained where, and over what it is taken to exchange."""

    model: str
    methods: Sequence[str]
    density: float
    batch: int
    device: torch.device
    link: Link
    ranks: int
    rounds: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Training:
    network: nn.Module
    workload: Workload
    batches: Sequence[Any]
    setting: Setting

    def contender(self, name: str) -> Contender:
        network = copy.deepcopy(self.network).to(self.setting.device)
        contender = Contender(name, network, self.workload, self.setting.density)
        self.run(contender, _WARM_UP)
        return contender

    def run(self, contender: Contender, count: int) -> float:
        """Train so many steps; return the seconds of one."""
        wait_for_device(self.setting.device)
        start = time.perf_counter()
        for turn in range(count):
            contender.train(self.batches[turn % len(self.batches)])
        wait_for_device(self.setting.device)
        return (time.perf_counter() - start) / count


@dataclass(kw_only=True, slots=True)
class _Series:
    """Collect a method's seconds per step, one entry per round."""

    name: str
    contender: Contender
    planned: Sequence[Step]
    wired: list[float] = field(default_factory=list)
    free: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    wire: list[float] = field(default_factory=list)


def measure(setting: Setting) -> list[dict[str, Any]]:
    """Check every method, then time them all in turn; return one cell per method."""
    source = SOURCES[setting.model]
    workload = workload_of(source)
    torch.manual_seed(0)
    training = _Training(
        network=network_of(source, workload),
        workload=workload,
        batches=[
            to_device(draw_batch(source, workload, seed=s, size=setting.batch), setting.device)
            for s in range(_BATCHES)
        ],
        setting=setting,
    )
    wire = SimulatedWire(setting.link, setting.ranks, setting.device)
    checked = {name: _checked(name, training, wire) for name in setting.methods}
    series = [one for one in checked.values() if isinstance(one, _Series)]
    alone = training.contender(NO_COMMUNICATION)
    for _ in range(setting.rounds):
        for one in series:
            _run_once(one, alone, training, wire)
    size = sum(parameter.numel() for parameter in training.network.parameters())
    return [_cell(name, found, setting, size) for name, found in checked.items()]


# ---- correctness -----------------------------------------------------------------------------------------


def _checked(name: str, training: _Training, wire: SimulatedWire) -> _Series | str:
    """Return a method that is ready to be timed, or what is wrong with it."""
    setting = training.setting
    config = METHODS[name](setting.density)
    assert isinstance(config, ReducerConfig)
    try:
        planned = steps_of(
            config, lay_out(config, dict(training.network.named_parameters())), setting.ranks
        )
        period = _period(planned)
        digests = []
        for way in (wire.in_place(), nullcontext()):
            with _same_bits_every_time(), way:
                contender = training.contender(name)
                training.run(contender, period)
            digests.append(contender.digest())
        training.run(contender, max(1, contender.settling))
        sent = [_sent_in_a_step(contender, training) for _ in range(period)]
    except GsdistError as error:
        return f"{type(error).__name__}: {error}"
    wire.seconds()
    if digests[0] != digests[1]:
        return "over the wire it computes something else"
    if not sends_as_planned(sent, planned):
        return "it does not send what the planner says of so many workers"
    return _Series(name=name, contender=contender, planned=planned)


@contextmanager
def _same_bits_every_time() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _sent_in_a_step(contender: Contender, training: _Training) -> tuple[Transfer, ...]:
    training.run(contender, 1)
    assert contender.state is not None
    return contender.state.stats().transfers_last_step


def sends_as_planned(sent: Iterable[tuple[Transfer, ...]], planned: Iterable[Step]) -> bool:
    """Tell whether a period's collectives hold, kind by kind, the bytes that the planner foresees."""
    return _bytes_by_kind((1, transfers) for transfers in sent) == _bytes_by_kind(planned)


def _period(planned: Iterable[Step]) -> int:
    """Return after how many steps a method begins anew."""
    return sum(times for times, _ in planned)


def _bytes_by_kind(steps: Iterable[Step]) -> Counter[str]:
    found: Counter[str] = Counter()
    for times, transfers in steps:
        for transfer in transfers:
            found[transfer.kind] += times * round(transfer.size)
    return found


# ---- time ------------------------------------------------------------------------------------------------


def _run_once(one: _Series, alone: Contender, training: _Training, wire: SimulatedWire) -> None:
    period = _period(one.planned)
    with wire.in_place():
        one.wired.append(training.run(one.contender, period))
    one.wire.append(wire.seconds() / period)
    one.free.append(training.run(one.contender, period))
    one.alone.append(training.run(alone, period))


def _cell(name: str, found: _Series | str, setting: Setting, size: int) -> dict[str, Any]:
    cell = {
        "model": setting.model,
        "d": size,
        "method": name,
        "ranks": setting.ranks,
        "bytes_per_second": setting.link.bandwidth,
        "latency": setting.link.latency,
        "batch": setting.batch,
        "correct": isinstance(found, _Series),
        "fault": found if isinstance(found, str) else None,
    }
    return cell | (_figures(found, setting) if isinstance(found, _Series) else {})


def _figures(one: _Series, setting: Setting) -> dict[str, Any]:
    """Return medians over the rounds, in seconds per step.

    `exposed_seconds` is a step over the wire less the step without exchange beside it. `hidden_share` is the
    part of the wire's seconds that does not show in the step.
    """
    wire = statistics.median(one.wire)
    shown = statistics.median(a - b for a, b in zip(one.wired, one.free, strict=True))
    low, high = interval_of_ratio(one.wired, one.alone)
    median = statistics.median
    return {
        "payload_bytes": sum(_bytes_by_kind(one.planned).values()) / _period(one.planned),
        "seconds_median": median(one.wired),
        "seconds_without_wire": median(one.free),
        "seconds_alone": median(one.alone),
        "exposed_seconds": median(a - b for a, b in zip(one.wired, one.alone, strict=True)),
        "over_alone": median(one.wired) / median(one.alone),
        "over_alone_interval": [low, high],
        "wire_seconds": wire,
        "planned_wire_seconds": mean_seconds(one.planned, setting.ranks, setting.link),
        "hidden_share": 1 - shown / wire if wire > 0 else None,
        "seconds": one.wired,
    }
