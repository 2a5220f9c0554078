"""Replicas under torchft: real processes that are killed and started again while the others go on."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import gsdist
from gsdist.errors import ConfigMismatch, UnsupportedSetup
from gsdist.integrations import FaultTolerantExchange
from gsdist.reducers import REDUCER_CONFIGS, GsSgdConfig, ReducerConfig, TopKConfig

pytest.importorskip("torchft", reason="torchft is not installed: pip install 'gsdist[torchft]'")

pytestmark = pytest.mark.timeout(300)
LIMIT = 250.0
"""Seconds a job may take on a busy machine; an idle one needs a twentieth."""
REPLICAS, FULL_STEPS = 3, 40
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.fault.torchft_replica"])


@dataclass
class Job:
    """Hold a lighthouse and the processes of replicas."""

    lighthouse: str
    folder: Path
    options: dict[str, Any]
    processes: list[BaseProcess] = field(default_factory=list)
    limit: float = field(default_factory=lambda: time.monotonic() + LIMIT)

    def start(self, number: int, *, life: int = 0, fault: str = "none") -> BaseProcess:
        process = _context.Process(
            target=_forked,
            kwargs={
                "number": number,
                "lighthouse": self.lighthouse,
                "out": str(self._out(number, life)),
                "full_steps": FULL_STEPS,
                "fault": fault,
                **self.options,
            },
            daemon=True,
        )
        process.start()
        self.processes.append(process)
        return process

    def wait(self, *processes: BaseProcess) -> list[int | None]:
        for process in processes:
            process.join(max(0.0, self.limit - time.monotonic()))
        return [process.exitcode for process in processes]

    def wait_until_alone(self) -> None:
        """Wait until the first replica has applied a step that not all took part in."""
        while not self._out(0, 0).with_suffix(".alone").exists():
            assert time.monotonic() < self.limit, "the others wait for the one that is gone"
            time.sleep(0.02)

    def diary(self, number: int, life: int = 0) -> dict[str, Any]:
        written = self._out(number, life)
        assert written.exists(), written.with_suffix(".log").read_text()[-3000:]
        return dict(json.loads(written.read_text()))

    def _out(self, number: int, life: int) -> Path:
        return self.folder / f"{number}-{life}.json"


def _forked(**order: Any) -> None:
    from tests.fault.torchft_replica import Replica, run_replica

    run_replica(Replica(**order))


@contextmanager
def job(folder: Path, **options: Any) -> Iterator[Job]:
    from torchft.coordination import LighthouseServer

    server = LighthouseServer(
        bind="127.0.0.1:0",
        min_replicas=2,
        join_timeout_ms=30_000,
        heartbeat_timeout_ms=1500,
    )
    port = server.address().rpartition(":")[2]
    running = Job(f"http://127.0.0.1:{port}", folder, options)
    try:
        yield running
    finally:
        for process in running.processes:
            process.kill()
            process.join(10)
        server.shutdown()


def require_alike(diaries: list[dict[str, Any]], key: str) -> int:
    """Check that what several replicas noted about a step is the same; return of how many steps."""
    common = set.intersection(*(set(diary[key]) for diary in diaries))
    for step in common:
        assert len({diary[key][step] for diary in diaries}) == 1, (key, step)
    return len(common)


def require_falling(diary: dict[str, Any]) -> None:
    losses = list(diary["losses"].values())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reducer", "momentum"),
    # momentum is kept by what all compressed methods share, so two stand for all
    [
        *((name, "post") for name in sorted(REDUCER_CONFIGS)),
        ("gs-sgd", "local"),
        ("top-k", "local"),
    ],
)
def test_others_go_on_without_a_replica_that_is_killed_and_take_it_in_again(
    tmp_path: Path, reducer: str, momentum: str
) -> None:
    with job(tmp_path, reducer=reducer, momentum=momentum) as running:
        others = [running.start(number) for number in range(2)]
        assert running.wait(running.start(2, fault="kill")) == [-9]
        running.wait_until_alone()
        again = running.start(2, life=1)
        assert running.wait(*others, again) == [0, 0, 0]
    survivors = [running.diary(number) for number in range(2)]
    joined = running.diary(2, life=1)

    for diary in survivors:
        if (
            reducer != "random-k"
        ):  # which does not learn at this density and learning rate, with torchft or without
            require_falling(diary)
        assert diary["failures"] and all(one["state_kept"] for one in diary["failures"])
        counts = list(diary["replicas"].values())
        assert counts.count(REPLICAS) == FULL_STEPS and 2 in counts
    for key in ("parameters", "shared"):
        assert require_alike(survivors, key) > FULL_STEPS
        assert require_alike([*survivors, joined], key) >= 10
    assert joined["residual_on_joining"] == 0.0 and joined["joined_at"] > 8
    assert joined["final"] == survivors[0]["final"] == survivors[1]["final"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reducer", "failures"),
    # a step of top-k has one sum, that of gs-SGD in which it happens is a refresh, with another sum to come
    [("top-k", [0, 0, 1]), ("gs-sgd", [1, 1, 1])],
)
def test_a_step_that_fails_on_one_replica_is_applied_by_all_or_none(
    tmp_path: Path, reducer: str, failures: list[int]
) -> None:
    with job(tmp_path, reducer=reducer) as running:
        processes = [running.start(number) for number in range(2)]
        processes.append(running.start(2, fault="lose"))
        assert running.wait(*processes) == [0, 0, 0]
    diaries = [running.diary(number) for number in range(REPLICAS)]

    assert [len(diary["failures"]) for diary in diaries] == failures
    assert all(one["state_kept"] for diary in diaries for one in diary["failures"])
    for key in ("parameters", "shared"):
        assert require_alike(diaries, key) == FULL_STEPS
    assert len({diary["final"] for diary in diaries}) == 1


class Manager:
    """Stand for a torchft manager whose quorum is this replica alone."""

    def __init__(self, group: Any) -> None:
        self._pg = group
        self.error: Exception | None = None

    def register_state_dict_fn(self, key: str, load: Any, state: Any) -> None:
        assert key == "gsdist"
        self.load, self.state = load, state

    def is_participating(self) -> bool:
        return True

    def errored(self) -> Exception | None:
        return self.error

    def report_error(self, error: Exception) -> None:
        self.error = error


def attached(
    config: ReducerConfig, group: Any
) -> tuple[Manager, torch.optim.Optimizer, FaultTolerantExchange]:
    import torchft

    model, manager = nn.Linear(64, 64), Manager(group)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapped = torchft.Optimizer(manager, optimizer)  # type: ignore[arg-type]
    return manager, optimizer, gsdist.attach_torchft(model, config, wrapped)


def test_other_groups_are_refused() -> None:
    import torchft

    with pytest.raises(UnsupportedSetup, match="ProcessGroupGloo"):
        attached(GsSgdConfig(), torchft.ProcessGroupBabyNCCL())


def test_a_replica_with_other_settings_is_refused_by_itself() -> None:
    import torchft

    first, _, _ = attached(GsSgdConfig(compression=20), torchft.ProcessGroupGloo())
    alike, _, _ = attached(GsSgdConfig(compression=20), torchft.ProcessGroupGloo())
    other, _, _ = attached(GsSgdConfig(compression=21), torchft.ProcessGroupGloo())
    alike.load(first.state())
    with pytest.raises(ConfigMismatch, match=r"compression=20.*there.*compression=21.*here"):
        other.load(first.state())


def test_gradients_that_were_not_exchanged_are_not_applied() -> None:
    import torchft

    _, optimizer, _ = attached(GsSgdConfig(), torchft.ProcessGroupGloo())
    with pytest.raises(UnsupportedSetup, match="average_gradients"):
        optimizer.step()


def test_a_gradient_that_is_not_finite_fails_the_step_and_changes_nothing() -> None:
    import torchft

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    group = torchft.ProcessGroupGloo()
    group.configure(f"127.0.0.1:{store.port}/test", "replica_0", 0, 1)
    config = TopKConfig(density=0.1, min_numel=0, warmup_steps=0, non_finite="skip")
    manager, optimizer, exchange = attached(config, group)
    (weight, _) = optimizer.param_groups[0]["params"]
    weight.grad = torch.arange(4096.0).view(64, 64)
    exchange.average_gradients()
    optimizer.step()
    kept = exchange.state_dict()["residual"]["weight"]
    assert manager.error is None and int((kept != 0).sum()) > 3000

    weight.grad = torch.full((64, 64), torch.nan)
    exchange.average_gradients()
    assert "not finite" in str(manager.error)
    assert torch.equal(exchange.state_dict()["residual"]["weight"], kept)
