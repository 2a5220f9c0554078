"""Train one replica of a job under torchft, with a fault on demand; write down what it did."""

import hashlib
import json
import os
import signal
import time
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import sklearn.datasets  # noqa: F401  imported once, before replicas are forked, as is all else
import torch
import torch.distributed as dist
import torchft
from torch import Tensor, nn

import gsdist
from gsdist.collectives import FLIGHT_RECORDER
from gsdist.data import digits
from gsdist.reducers import REDUCER_CONFIGS, CompressedConfig, TopKConfig
from gsdist.reducers.config import SparseConfig

REPLICAS = 3
FAULT_AFTER = 8
"""Steps in full number before the fault."""


@dataclass(frozen=True, kw_only=True)
class Replica:
    """Say what a replica is to do."""

    number: int
    lighthouse: str
    out: str
    reducer: str = "gs-sgd"
    momentum: str = "post"
    full_steps: int = 40
    """How many steps all replicas are to take together; without some of them they go on."""
    fault: str = "none"
    """A key of `FAULTS`."""


@dataclass
class Diary:
    """Note, by the manager's step, what must be alike on all replicas, and what failed."""

    parameters: dict[int, str] = field(default_factory=dict)
    shared: dict[int, str] = field(default_factory=dict)
    replicas: dict[int, int] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    final: str = ""
    joined_at: int = -1
    residual_on_joining: float = -1.0


class Job:
    """Hold what a replica trains with."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.full_steps = 0
        self.alone = Path(replica.out).with_suffix(".alone")
        torch.manual_seed(
            replica.number
        )  # replicas that differ, until torchft has brought them together
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
        self.store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        self.manager = torchft.Manager(
            pg=torchft.ProcessGroupGloo(timeout=timedelta(seconds=10)),
            load_state_dict=self.load,
            state_dict=self.state,
            min_replica_size=2,
            use_async_quorum=False,
            timeout=timedelta(seconds=20),
            quorum_timeout=timedelta(seconds=40),
            rank=0,
            world_size=1,
            store_addr="localhost",
            store_port=self.store.port,
            lighthouse_addr=replica.lighthouse,
            replica_id=f"replica_{replica.number}",
            hostname="localhost",
            max_retries=5,
        )
        inner = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.optimizer = torchft.Optimizer(self.manager, inner)
        kind = REDUCER_CONFIGS[replica.reducer]
        options: dict[str, Any] = {}
        if issubclass(kind, CompressedConfig):
            options |= {"min_numel": 100, "warmup_steps": 2, "momentum": replica.momentum}
        if issubclass(kind, SparseConfig):
            options |= {"density": 0.05}
        if kind is TopKConfig:
            options |= {"exchange": "proposals"}
        self.exchange = gsdist.attach_torchft(self.model, kind(**options), self.optimizer)

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "full_steps": self.full_steps,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.full_steps = state["full_steps"]


def digest(state: Any) -> str:
    """Hash all numbers of nested dicts, in order, but the counters of bytes and seconds."""
    found = hashlib.sha256()

    def visit(value: Any) -> None:
        if isinstance(value, dict):
            for key in sorted(value):
                if key != "statistics":
                    visit(value[key])
        elif isinstance(value, Tensor):
            found.update(value.detach().contiguous().numpy().tobytes())
        else:
            found.update(repr(value).encode())

    visit(state)
    return found.hexdigest()


def kill_at_next_collective() -> None:
    FLIGHT_RECORDER.begin = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign,assignment,return-value]


def lose_next_sum() -> None:
    """Let the next all-reduce succeed on the other replicas alone."""
    real = dist.all_reduce

    def all_reduce(buffer: Tensor, **options: Any) -> None:
        dist.all_reduce = real
        real(buffer, **options)
        raise RuntimeError("[gloo] connection reset by peer, said by the test")

    dist.all_reduce = all_reduce


FAULTS = {"none": lambda: None, "kill": kill_at_next_collective, "lose": lose_next_sum}


def train(replica: Replica) -> Diary:
    job, diary = Job(replica), Diary()
    images = (torch.from_numpy(digits.load("train")[0]).float() / 240.0).squeeze(-1)
    labels = torch.from_numpy(digits.load("train")[1])
    fault = replica.fault
    while job.full_steps < replica.full_steps:
        job.optimizer.zero_grad()
        step, count = job.manager.current_step(), job.manager.num_participants()
        if not diary.parameters:
            diary.joined_at = step
            diary.residual_on_joining = job.exchange.stats().residual_norm
        own = job.exchange.state_dict()
        diary.parameters[step] = digest(job.model.state_dict())
        diary.shared[step] = digest(job.exchange.inherited_state(own, []))
        place = job.manager.participating_rank()
        assert place is not None
        generator = torch.Generator().manual_seed(1000 * step + place)
        batch = torch.randint(len(labels), (32,), generator=generator)
        loss = nn.functional.cross_entropy(job.model(images[batch]), labels[batch])
        loss.backward()
        if job.full_steps == FAULT_AFTER:
            FAULTS[fault]()
            fault = "none"
        started = time.monotonic()
        job.exchange.average_gradients()
        if job.manager.errored():
            kept = digest(own) == digest(job.exchange.state_dict())
            seconds = time.monotonic() - started
            diary.failures.append({"step": step, "state_kept": kept, "seconds": seconds})
        job.optimizer.step()
        if job.manager.current_step() > step:
            diary.losses[step], diary.replicas[step] = float(loss.detach()), count
            job.full_steps += count == REPLICAS
            if count < REPLICAS:
                job.alone.touch()
        if count < REPLICAS:
            time.sleep(0.05)  # until the one that is missing has started
    diary.final = digest(job.model.state_dict())
    job.manager.shutdown(wait=False)
    return diary


def run_replica(replica: Replica) -> None:
    """Be one replica to its end; output goes to a log beside what is written down."""
    out = Path(replica.out)
    with out.with_suffix(".log").open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    out.write_text(json.dumps(asdict(train(replica))))
    os._exit(0)  # torchft's servers are threads that would be waited for
