"""Compare the ranks beside training: who is asked to stop, who keeps others waiting, who has diverged.

About once a second each rank contributes a few numbers to an all-gather that nobody waits for until the next
one. All ranks therefore see the same numbers at the same step, and act alike; the step of the next all-gather
follows from them, too.
"""

import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from gsdist.collectives import guarded, open_group
from gsdist.errors import ConfigMismatch

__all__ = ["RankMonitor", "Report", "parameter_hash"]

_STOP, _WAIT, _STEP, _CHECKED, _HASH = range(5)
_SECONDS = 1.0
"""From one comparison to the next, where steps are short."""
_LATE_REPORTS = 2
_LATE_SHARE = 0.3
_MIXER = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Say what the ranks told each other, in rank order; the same on every rank."""

    stop: bool
    """Whether some rank was asked to stop."""
    wait_ms: tuple[float, ...]
    """Milliseconds per step that each rank spent in collectives, mostly waiting for others."""
    step_ms: float
    """Milliseconds per step of the slowest rank."""


class RankMonitor:
    """Let the ranks of the default group compare notes now and then, on a group of its own."""

    def __init__(self, least: int, most: int) -> None:
        """Compare every `least` steps, or a multiple of it up to `most` where steps are short.

        Collectives: creates a process group.
        """
        self._group = open_group()
        self._least = least
        self._most = most
        self._interval = least
        self._world_size = dist.get_world_size()
        self._pending: tuple[int, dist.Work, list[Tensor], Tensor] | None = None
        self._waited = 0.0
        self._steps = 0
        self._seconds = 0.0
        self._late: Counter[int] = Counter()

    def due(self, step: int) -> bool:
        """Tell whether `exchange` is to be called after this step; alike on all ranks."""
        return step % self._least == 0 and step >= self._steps + self._interval

    def passed(self, step: int, every: int) -> bool:
        """Tell whether a multiple of `every` lies between the last exchange and this step."""
        return step // every > self._steps // every

    def exchange(
        self, step: int, *, stop: bool, waited: float, seconds: float, parameters: int | None
    ) -> Report | None:
        """Send this rank's numbers and return those of the time before, if there was one.

        Args:
            step: steps done.
            stop: whether this rank has been asked to stop.
            waited: seconds this rank has spent in collectives, of the whole run.
            seconds: seconds this rank has trained, of the whole run.
            parameters: `parameter_hash`, where one is to be compared; on all ranks at the same step.

        Raises:
            ConfigMismatch: parameters differed; on every rank, naming the ranks.
            CollectiveError: a rank is missing.

        Collectives: one all-gather of 40 bytes per rank, for which the next call waits.
        """
        report = self._receive()
        if report is not None:
            rounds = 1e3 * _SECONDS / max(1e-3, report.step_ms * self._least)
            self._interval = max(self._least, min(round(rounds) * self._least, self._most))
        steps = max(1, step - self._steps) if self._steps else self._least
        wait = (waited - self._waited) / steps
        self._steps, self._waited = step, waited
        self._seconds, elapsed = seconds, seconds - self._seconds
        own = torch.tensor(
            [
                int(stop),
                round(1e9 * wait),
                round(1e9 * elapsed / steps),
                int(parameters is not None),
                _signed(parameters or 0),
            ]
        )
        gathered = [torch.empty_like(own) for _ in range(self._world_size)]
        with guarded(own, self._group, f"step {step}, comparing ranks"):
            work = dist.all_gather(gathered, own, group=self._group, async_op=True)
        assert work is not None
        self._pending = step, work, gathered, own
        if report is not None:
            self._warn_of_stragglers(report, 1e3 * elapsed / steps)
        return report

    def finish(self) -> None:
        """Take in what is still under way. Raises as `exchange`."""
        self._receive()

    def _receive(self) -> Report | None:
        if self._pending is None:
            return None
        step, work, gathered, own = self._pending
        self._pending = None
        with guarded(own, self._group, f"step {step}, comparing ranks"):
            work.wait()
        rows = torch.stack(gathered).tolist()
        if any(row[_CHECKED] for row in rows):
            _require_equal_parameters(step, [row[_HASH] for row in rows])
        return Report(
            stop=any(row[_STOP] for row in rows),
            wait_ms=tuple(row[_WAIT] / 1e6 for row in rows),
            step_ms=max(row[_STEP] for row in rows) / 1e6,
        )

    def _warn_of_stragglers(self, report: Report, step_ms: float) -> None:
        """Warn when the same rank has been the one that waits least, by far, several times in a row."""
        least = min(report.wait_ms)
        rank = report.wait_ms.index(least)
        others = [wait for other, wait in enumerate(report.wait_ms) if other != rank]
        late = min(others, default=0.0) - least
        if late < _LATE_SHARE * step_ms:
            self._late.clear()
            return
        self._late = Counter({rank: self._late[rank] + 1})
        if self._late[rank] == _LATE_REPORTS and dist.get_rank() == 0:
            warnings.warn(
                f"rank {rank} is slow: in every step all others wait about {late:.0f} ms for it, of "
                f"{step_ms:.0f} ms; look at its machine, or leave it out",
                stacklevel=2,
            )


def parameter_hash(parameters: Iterable[Tensor]) -> int:
    """Return 64 bits that any single change of any bit of the parameters changes.

    Reads every parameter once, where it lies.
    """
    total = 0
    for position, parameter in enumerate(parameters):
        flat = parameter.detach().reshape(-1)
        words = flat.view({1: torch.int8, 2: torch.int16, 4: torch.int32}.get(
            flat.element_size(), torch.int64
        ))  # fmt: skip
        total += int(words.sum(dtype=torch.int64)) * (_MIXER * (2 * position + 1) | 1)
    return total & _MASK


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _require_equal_parameters(step: int, hashes: list[int]) -> None:
    if len(set(hashes)) == 1:
        return
    common, count = Counter(hashes).most_common(1)[0]
    if count > 1:
        others = [rank for rank, value in enumerate(hashes) if value != common]
        who = f"those of rank(s) {', '.join(map(str, others))} are not those of the others"
    else:
        who = "no two ranks hold the same"
    raise ConfigMismatch(
        f"the model's parameters differ between ranks after step {step}: {who}. Something has changed them "
        "on single ranks: code that depends on the rank, or faulty memory. Resume from a checkpoint of an "
        "earlier step"
    )
