"""Make one rank misbehave at one place of one step, in a process that otherwise runs as it always does."""

import ctypes
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from gsdist.reducers.compressed import CompressedReducer
from gsdist.training.learner import Learner

__all__ = ["ACTIONS", "Fault", "install"]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Say who does what, where, and when."""

    rank: int
    step: int
    """From 0, as reducers count; the first time from then on that the place is reached."""
    action: str
    """A key of `ACTIONS`."""
    place: str = "forward"
    """"forward", "after step", or the beginning of a collective's phase, such as "allreduce_sketch"."""
    seconds: float = 0.0
    """How long what takes time takes."""
    every_step: bool = False
    """Do it again in all later steps."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def _signal_here(number: int) -> None:
    """Send a signal to this very thread, so that it goes no further; sent to the process, it may."""
    signal.pthread_kill(threading.get_ident(), number)


def _hold_gil(seconds: float) -> None:
    """Sleep in C without giving Python's lock away."""
    ctypes.PyDLL(None).usleep(int(1e6 * seconds))


def _raise(error: BaseException) -> None:
    raise error


ACTIONS: dict[str, Callable[[float], Any]] = {
    "kill": lambda _: _signal_here(signal.SIGKILL),
    "stop": lambda _: _signal_here(signal.SIGSTOP),
    "terminate": lambda _: os.kill(os.getpid(), signal.SIGTERM),
    "segfault": lambda _: ctypes.string_at(0),
    "hold gil": _hold_gil,
    "sleep": time.sleep,
    "raise": lambda _: _raise(RuntimeError("spilt coffee")),
    "out of memory": lambda _: _raise(torch.OutOfMemoryError("CUDA out of memory (injected)")),
    "exit": lambda _: os._exit(7),
}
"""What a process can do by itself. "flip" and "nan" change the model and need it."""


def install(fault: Fault, rank: int) -> None:
    """Make this process carry the fault out, if it is the one."""
    if rank != fault.rank or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        return

    struck = False

    def strike(step: int, model: torch.nn.Module | None = None) -> None:
        nonlocal struck
        if step < fault.step or (struck and not fault.every_step):
            return
        struck = True
        if model is None or fault.action in ACTIONS:
            ACTIONS[fault.action](fault.seconds)
        else:
            _spoil(fault.action, model)

    if fault.place in ("forward", "after step"):
        step_of_learner = Learner.step

        def step(self: Learner, batches: list[Any], number: int) -> Any:
            if fault.place == "forward":
                strike(number - 1, self.model)
            terms = step_of_learner(self, batches, number)
            if fault.place == "after step":
                strike(number - 1, self.model)
            return terms

        Learner.step = step  # type: ignore[method-assign]
        return
    all_reduce = CompressedReducer._all_reduce

    def reduce(self: CompressedReducer[Any], buffer: torch.Tensor, phase: str) -> None:
        if phase.startswith(fault.place):
            strike(self._step)
        all_reduce(self, buffer, phase)

    CompressedReducer._all_reduce = reduce  # type: ignore[method-assign]


def _spoil(action: str, model: torch.nn.Module) -> None:
    parameters = list(model.parameters())
    with torch.no_grad():
        if (
            action == "flip"
        ):  # a high bit of one weight: a low one may be rounded away in the same step
            words = parameters[0].view(torch.int32).view(-1)
            words[0] ^= 1 << 20
        elif action == "nan":
            parameters[-1].register_hook(lambda gradient: gradient * float("nan"))
        else:
            raise KeyError(action)
