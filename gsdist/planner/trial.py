"""Exchange random gradients by one method and time every step."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
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

__all__ = ["Step", "Trial"]

_REPETITIONS = 5
"""Steps of each kind, at least."""
_SHIFT = 7919
"""Places by which a gradient is turned from step to step: residuals of equal gradients would add up, and
their sums outgrow half precision."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """Hold what one step took on this rank."""

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
        # Kinds of steps are told apart by how many collectives they issue.
        self._times = {len(transfers): count for count, transfers in steps if count}
        self._kinds: list[int] = []
        generator = torch.Generator().manual_seed(rank_of(group))
        gradient = torch.randn(self._layout.numel, generator=generator)
        self._gradient = gradient.to(self._layout.device)

    def run(self, *, least: int = 0, meet: Callable[[], None] | None = None) -> list[Step]:
        """Time `least` steps and until each kind of them came often enough; the first one does not count.

        `meet` is called before every step. Collectives: those of the method.
        """
        self._exchange()
        steps: list[Step] = []
        while len(steps) < least or any(
            self._kinds.count(kind) < _REPETITIONS for kind in self._times
        ):
            if meet is not None:
                meet()
            steps.append(self._exchange())
            self._kinds.append(self._kind())
        return steps

    def typical(self, seconds: Sequence[float]) -> float:
        """Return the mean over a period of the method, of the median of each kind of step.

        Takes one number for every step that `run` returned.
        """
        medians = {
            kind: statistics.median(
                s for s, k in zip(seconds, self._kinds, strict=True) if k == kind
            )
            for kind in self._times
        }
        total = sum(count * medians[kind] for kind, count in self._times.items())
        return total / sum(self._times.values())

    def _kind(self) -> int:
        (only, *others) = self._times
        # where all steps are alike, gradients may still decide how many collectives there are
        return len(self._reducer.statistics().transfers_last_step) if others else only

    def _exchange(self) -> Step:
        self._gradient = self._gradient.roll(_SHIFT)
        bucket = GradientBucket.whole(self._layout, self._gradient.clone())
        before, start = self._wire_seconds(), time.perf_counter()
        self._reducer.push(bucket)
        self._reducer.finish()
        wait_for_device(self._layout.device)
        seconds = time.perf_counter() - start
        return Step(seconds=seconds, local_seconds=seconds - (self._wire_seconds() - before))

    def _wire_seconds(self) -> float:
        return wire_seconds(self._reducer.statistics().seconds)
