"""Run a training job of a few real gloo processes, and see how each of them ends.

Processes are forked from a server that has imported everything, so a job starts within a second. Only its own
processes are ever killed, by their ids.
"""

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Self

from tests.distributed.harness import run_ranks
from tests.fault.injection import Fault

__all__ = ["DEADLINE", "Job", "run_forked", "training"]

DEADLINE = 10.0
"""Seconds a collective may take in these jobs; long enough for a busy machine."""
_BUSY_MACHINE = 150.0
"""Seconds after which the harness gives up; an idle machine needs a tenth."""
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.fault.rank"])


def training(
    folder: Path, *options: str, reducer: str = "gs-sgd", steps: int = 30, timeout: float = DEADLINE
) -> list[str]:
    """Return the arguments of a small run; its reducer finds directions in every other step."""
    compressed = ["--reducer.warmup-steps", "1", "--reducer.min-numel", "64"]
    found = ["--reducer.compression", "8"] if reducer == "gs-sgd" else []
    return [
        *("train", "classification", "--data", "digits", "--model", "mlp", "--batch-size", "16"),
        *("--reducer", reducer, *([] if reducer == "dense" else compressed), *found),
        *("--steps", str(steps), "--timeout", str(timeout), "--init-timeout", "60"),
        *("--no-progress", "--device", "cpu", "--log-every", "1", "--run-dir", str(folder / "run")),
        *options,
    ]


@dataclass
class Job:
    """Hold the processes of a job, by rank."""

    processes: list[BaseProcess]
    logs: list[Path]

    @classmethod
    def start(
        cls,
        folder: Path,
        arguments: Sequence[str],
        *,
        ranks: int = 3,
        fault: Fault | None = None,
        only: Sequence[int] | None = None,
        environment: dict[str, str] | None = None,
    ) -> Self:
        """Start the job; `only` leaves the other ranks out."""
        folder.mkdir(parents=True, exist_ok=True)
        port = _free_port()
        started = range(ranks) if only is None else only
        logs = [folder / f"rank{rank}.log" for rank in started]
        processes = []
        for rank, log in zip(started, logs, strict=True):
            variables = {
                "RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
                **(environment or {}),
            }
            process = _context.Process(
                target=_forked,
                args=(str(log), variables, fault.to_json() if fault else None, list(arguments)),
                daemon=True,
            )
            process.start()
            processes.append(process)
        return cls(processes, logs)

    def signal(self, rank: int, number: int) -> None:
        """Send a signal to one process of the job."""
        process = self.processes[rank]
        assert process.pid is not None
        if process.exitcode is None:
            os.kill(process.pid, number)

    def join(
        self, ranks: Sequence[int] | None = None, *, within: float = _BUSY_MACHINE
    ) -> list[int | None]:
        """Wait for some ranks (all) and return their exit codes; None stands for one that is still there."""
        chosen = range(len(self.processes)) if ranks is None else ranks
        limit = time.monotonic() + within
        for rank in chosen:
            self.processes[rank].join(max(0.0, limit - time.monotonic()))
        return [self.processes[rank].exitcode for rank in chosen]

    def wait_for(self, rank: int, text: str, *, within: float = _BUSY_MACHINE) -> bool:
        """Wait until a rank has printed something; tell whether it has."""
        limit = time.monotonic() + within
        while text not in self.output(rank):
            if time.monotonic() > limit or self.processes[rank].exitcode is not None:
                return text in self.output(rank)
            time.sleep(0.05)
        return True

    def output(self, rank: int) -> str:
        """Return what a rank has printed so far."""
        return self.logs[rank].read_text(errors="replace") if self.logs[rank].exists() else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.exitcode is None:
                assert process.pid is not None
                os.kill(process.pid, signal.SIGKILL)  # also ends a stopped one
            process.join(_BUSY_MACHINE)
            process.close()


def run_forked(function: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """Call a function on several ranks as `run_ranks` does, forked and with patience."""
    return run_ranks(
        function, world_size, *arguments, timeout=2 * _BUSY_MACHINE, method="forkserver"
    )


def _forked(log: str, environment: dict[str, str], fault: str | None, arguments: list[str]) -> None:
    from tests.fault.rank import run_rank

    run_rank(log, environment, fault, arguments)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
