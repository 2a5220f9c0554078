"""Train one model under DDP with one way of exchanging gradients, a step at a time."""

import hashlib
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

import gsdist
from benchmarks.exchange.methods import METHODS, ORIGINAL, cycle_of
from gsdist.integrations.ddp import ReducerState
from gsdist.workloads import Workload

__all__ = ["CONTENDERS", "NO_COMMUNICATION", "Contender", "Step"]

NO_COMMUNICATION = "no-communication"
_LEARNING_RATE = 0.01
_RANK = 2
_TORCH_POWER_SGD = "torch-power-sgd"
_ONE_BUCKET = {"bucket_cap_mb": 1 << 14}
"""With several buckets, torch's PowerSGD hook issues its collectives in whatever order callbacks run, which
differs between ranks; gloo then pairs those of different buckets and ends the program."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """Say what one training step took on this rank, in seconds."""

    seconds: float
    forward: float
    backward: float
    """Includes waiting for the exchange."""
    optimizer: float
    cpu_seconds: float
    """User and system time of all threads of this process."""
    phases: dict[str, float]
    """Of gsdist's reducer; they overlap with backward."""
    payload_bytes: int
    """Of gsdist's reducer."""

    @classmethod
    def mean(cls, every: "Sequence[Step]") -> "Step":
        """Return the mean of some steps."""
        count = len(every)
        names = {name for one in every for name in one.phases}
        return cls(
            seconds=sum(one.seconds for one in every) / count,
            forward=sum(one.forward for one in every) / count,
            backward=sum(one.backward for one in every) / count,
            optimizer=sum(one.optimizer for one in every) / count,
            cpu_seconds=sum(one.cpu_seconds for one in every) / count,
            phases={n: sum(one.phases.get(n, 0.0) for one in every) / count for n in names},
            payload_bytes=round(sum(one.payload_bytes for one in every) / count),
        )


def _keep_local(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def _no_communication(model: DistributedDataParallel, density: float) -> None:
    model.register_comm_hook(None, _keep_local)


def _torch_power_sgd(model: DistributedDataParallel, density: float) -> None:
    state = powerSGD_hook.PowerSGDState(
        process_group=None, matrix_approximation_rank=_RANK, start_powerSGD_iter=2
    )
    model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)


def _gsdist(method: str) -> Callable[[DistributedDataParallel, float], ReducerState]:
    return lambda model, density: gsdist.attach(model, METHODS[method](density))


CONTENDERS: Mapping[str, Callable[[DistributedDataParallel, float], ReducerState | None]] = (
    MappingProxyType(
        {
            NO_COMMUNICATION: _no_communication,
            "torch-ddp": lambda model, density: None,
            _TORCH_POWER_SGD: _torch_power_sgd,
            **{method: _gsdist(method) for method in METHODS if method != ORIGINAL},
        }
    )
)
"""Name -> what makes a DDP model exchange that way at a density. `torch-*` is PyTorch alone;
`no-communication` exchanges nothing, so that its step is what any exchange comes on top of."""


class Contender:
    """Own one model, its optimizer and its way of exchanging."""

    def __init__(self, name: str, model: nn.Module, workload: Workload, density: float) -> None:
        """Wrap the model; collective.

        Raises:
            GsdistError: the method does not fit the model.
        """
        options = _ONE_BUCKET if name == _TORCH_POWER_SGD else {}
        self.model = DistributedDataParallel(model, **options)
        self._optimizer = torch.optim.SGD(
            self.model.parameters(), lr=_LEARNING_RATE, momentum=0.9, nesterov=True
        )
        self._workload = workload
        self.state = CONTENDERS[name](self.model, density)
        self.settling, self.period = 0, 1
        if name in METHODS:
            self.settling, self.period = cycle_of(
                METHODS[name](density), dict(model.named_parameters())
            )

    def step(self, batch: Any) -> Step:
        """Train on one batch."""
        before, _ = self._counters()
        cpu = _cpu_seconds()
        times = self.train(batch)
        cpu = _cpu_seconds() - cpu
        after, payload = self._counters()
        return Step(
            seconds=times[3] - times[0],
            forward=times[1] - times[0],
            backward=times[2] - times[1],
            optimizer=times[3] - times[2],
            cpu_seconds=cpu,
            phases={name: total - before.get(name, 0.0) for name, total in after.items()},
            payload_bytes=payload,
        )

    def train(self, batch: Any) -> list[float]:
        """Train on one batch and count nothing; return the time at the start and after each part."""
        times = [time.perf_counter()]
        self._optimizer.zero_grad()
        loss = self._workload.loss(self.model, batch).total
        times.append(time.perf_counter())
        loss.backward()
        times.append(time.perf_counter())
        self._optimizer.step()
        times.append(time.perf_counter())
        return times

    def _counters(self) -> tuple[Mapping[str, float], int]:
        if self.state is None:
            return {}, 0
        statistics = self.state.stats()
        return statistics.seconds, statistics.payload_bytes_last_step

    def digest(self) -> str:
        """Return a hash of the parameters' bits."""
        digest = hashlib.sha256()
        for parameter in self.model.parameters():
            digest.update(parameter.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
