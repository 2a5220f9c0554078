"""Exchange random gradients by one method, time every step, and say what a step takes in the mean."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from gsdist.collectives import rank_of, wait_for_device
from gsdist.planner.traffic import steps_of
from gsdist.reducers import (
    CompressedConfig,
    GradientBucket,
    ReducerConfig,
    build_reducer,
)
from gsdist.reducers.statistics import wire_seconds

__all__ = ["Step", "Trial", "typical"]

_REPETITIONS = 3
"""Steps of each kind, at least."""
_SHIFT = 7919
"""Places by which a gradient is turned from step to step: residuals of equal gradients would add up, and
their sums outgrow half precision."""
_TRIMMED = 0.1
"""Share of the steps of a kind that is left out at either end, but one at least: a pause of the machine tells
nothing of the method."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """Hold what one step took on this rank."""

    kind: int
    """How many collectives it issued: by that kinds of steps are told apart."""
    seconds: float
    local_seconds: float
    """Those that were not spent in collectives."""


class Trial:
    """Own the reducer that is tried, and a gradient."""

    def __init__(
        self, config: ReducerConfig, parameters: Mapping[str, Tensor], group: dist.ProcessGroup
    ) -> None:
        """Build the reducer, past its warm-up.

        Raises:
            ConfigError: the settings do not fit the parameters.
        """
        if isinstance(config, CompressedConfig):
            config = replace(config, warmup_steps=0)
        self._layout, self._reducer = build_reducer(config, parameters, group)
        steps = steps_of(config, self._layout, dist.get_world_size(group))
        self.period = {len(transfers): count for count, transfers in steps if count}
        """How many steps of each kind follow one another in a period of the method."""
        generator = torch.Generator().manual_seed(rank_of(group))
        gradient = torch.randn(self._layout.numel, generator=generator)
        self._gradient, self._turn = gradient.to(self._layout.device), 0

    def run(self, *, least: int = 0, meet: Callable[[], None] | None = None) -> list[Step]:
        """Time `least` steps and until each kind of them came often enough; the first one does not count.

        `meet` is called before every step. Collectives: those of the method.
        """
        self._exchange()
        steps: list[Step] = []
        missing = dict.fromkeys(self.period, _REPETITIONS)
        while len(steps) < least or max(missing.values()) > 0:
            if meet is not None:
                meet()
            steps.append(self._exchange())
            if steps[-1].kind in missing:
                missing[steps[-1].kind] -= 1
        return steps

    def _exchange(self) -> Step:
        self._turn += _SHIFT
        bucket = GradientBucket.whole(self._layout, self._gradient.roll(self._turn))
        before, start = self._wire_seconds(), time.perf_counter()
        self._reducer.push(bucket)
        self._reducer.finish()
        wait_for_device(self._layout.device)
        seconds = time.perf_counter() - start
        local_seconds = seconds - (self._wire_seconds() - before)
        return Step(kind=self._kind(), seconds=seconds, local_seconds=local_seconds)

    def _kind(self) -> int:
        (only, *others) = self.period
        # where all steps are alike, gradients may still decide how many collectives there are
        return len(self._reducer.statistics().transfers_last_step) if others else only

    def _wire_seconds(self) -> float:
        return wire_seconds(self._reducer.statistics().seconds)


def typical(period: Mapping[int, int], steps: Iterable[tuple[int, float]]) -> float:
    """Return the mean seconds of a step over a period of the method, from kinds and seconds of some steps."""
    by_kind: dict[int, list[float]] = {kind: [] for kind in period}
    for kind, seconds in steps:
        if kind in by_kind:
            by_kind[kind].append(seconds)
    total = sum(count * _trimmed_mean(by_kind[kind]) for kind, count in period.items())
    return total / sum(period.values())


def _trimmed_mean(values: Sequence[float]) -> float:
    left_out = max(1, round(_TRIMMED * len(values)))
    return statistics.fmean(sorted(values)[left_out:-left_out])
