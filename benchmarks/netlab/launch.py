"""Run one process per rank inside its namespace, under a hard time limit."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from benchmarks.netlab.counters import LabCounters
from benchmarks.netlab.errors import LabError
from benchmarks.netlab.settings import INTERFACE

__all__ = ["LabRun", "RankResult", "rank_environment", "run_processes"]

_POLL_SECONDS = 0.02
_SHOWN_CHARACTERS = 2000
Ended = Literal["ended by itself", "killed at the time limit", "killed after another rank failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RankResult:
    """Say how one rank's process ended and what it wrote."""

    rank: int
    exit_code: int
    """As in `subprocess`: negative for a signal."""
    ended: Ended
    seconds: float
    stdout: str
    stderr: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LabRun:
    """Hold the results of one run and the traffic it caused, rendezvous included."""

    ranks: tuple[RankResult, ...]
    traffic: LabCounters

    @property
    def ok(self) -> bool:
        """Say whether every rank ended with exit code 0."""
        return all(result.exit_code == 0 for result in self.ranks)

    def check(self) -> None:
        """Raise unless every rank succeeded.

        Raises:
            LabError: with the end of what each failed rank wrote, those that failed by themselves first.
        """
        failed = sorted(
            (result for result in self.ranks if result.exit_code),
            key=lambda result: result.ended != "ended by itself",
        )
        if failed:
            raise LabError(
                "\n".join(
                    f"rank {result.rank} {result.ended}, exit code {result.exit_code}: "
                    f"{(result.stderr or result.stdout)[-_SHOWN_CHARACTERS:].strip()}"
                    for result in failed
                )
            )


def rank_environment(rank: int, world_size: int, master: str, port: int) -> dict[str, str]:
    """Return what torchrun would set for the only worker of node `rank`, and the interface to use."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": "0",
        "GROUP_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": "1",
        "GROUP_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": master,
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": INTERFACE,
    }


class _Rank:
    """Own one rank's process and its two output files."""

    def __init__(
        self, rank: int, command: Sequence[str], environment: Mapping[str, str], folder: Path
    ) -> None:
        self.rank = rank
        self._ended: Ended = "ended by itself"
        self._end: float | None = None
        self._outputs = (folder / f"{rank}.stdout", folder / f"{rank}.stderr")
        self._start = time.monotonic()
        with self._outputs[0].open("wb") as stdout, self._outputs[1].open("wb") as stderr:
            self._process = subprocess.Popen(
                command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )

    def poll(self) -> int | None:
        """Return the exit code once the process has ended."""
        code = self._process.poll()
        if code is not None and self._end is None:
            self._end = time.monotonic()
        return code

    def kill(self, reason: Ended) -> None:
        """Kill the process and its session, unless it has ended by itself."""
        if self.poll() is None:
            self._ended = reason
            # not yet waited for, so the number cannot belong to another process by now
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self.poll()

    def result(self) -> RankResult:
        stdout, stderr = (path.read_text(errors="replace") for path in self._outputs)
        return RankResult(
            rank=self.rank,
            exit_code=self._process.returncode,
            ended=self._ended,
            seconds=(self._end or self._start) - self._start,
            stdout=stdout,
            stderr=stderr,
        )


def run_processes(
    command_of: Callable[[int], Sequence[str]],
    environments: Sequence[Mapping[str, str]],
    *,
    timeout: float,
    failure_grace: float,
) -> tuple[RankResult, ...]:
    """Start one process per environment, wait for all, and leave none running, whatever happens.

    Args:
        command_of: rank -> its whole command.
        environments: whole environment of each rank.
        timeout: seconds after which every process still running is killed.
        failure_grace: seconds the others get once one process failed.
    """
    with TemporaryDirectory(prefix="gsdist-lab-") as folder:
        ranks: list[_Rank] = []
        try:
            for rank, environment in enumerate(environments):
                ranks.append(_Rank(rank, command_of(rank), environment, Path(folder)))
            _wait(ranks, timeout, failure_grace)
        finally:
            # only after an exception (a signal, say) is anything left to kill
            for process in ranks:
                process.kill("killed at the time limit")
        return tuple(process.result() for process in ranks)


def _wait(ranks: Sequence[_Rank], timeout: float, failure_grace: float) -> None:
    limit = time.monotonic() + timeout
    reason: Ended = "killed at the time limit"
    failed = False
    while True:
        codes = [rank.poll() for rank in ranks]
        if None not in codes:
            return
        now = time.monotonic()
        if any(codes) and not failed:
            failed = True
            if now + failure_grace < limit:
                limit, reason = now + failure_grace, "killed after another rank failed"
        if now >= limit:
            for rank in ranks:
                rank.kill(reason)
            return
        time.sleep(_POLL_SECONDS)
