"""Replicas under torchft: real processes that are killed and started again while the others go on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gsdist
from gsdist.errors import UnsupportedSetup
from gsdist.reducers import GsSgdConfig

pytest.importorskip("torchft", reason="torchft is not installed: pip install 'gsdist[torchft]'")

LIMIT = 100.0
"""Seconds a job may take on a busy machine; an idle one needs a tenth."""
REPLICAS, FULL_STEPS = 3, 24


@dataclass
class Job:
    """Hold a lighthouse and the processes of replicas."""

    lighthouse: str
    folder: Path
    options: dict[str, Any]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    limit: float = field(default_factory=lambda: time.monotonic() + LIMIT)

    def start(self, number: int, *, life: int = 0, **more: Any) -> subprocess.Popen[bytes]:
        order = {
            "number": number,
            "lighthouse": self.lighthouse,
            "out": str(self.folder / f"{number}-{life}.json"),
            "full_steps": FULL_STEPS,
            **self.options,
            **more,
        }
        with (self.folder / f"{number}-{life}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.fault.torchft_replica", json.dumps(order)],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.processes.append(process)
        return process

    def wait(self, process: subprocess.Popen[bytes]) -> int:
        return process.wait(max(0.0, self.limit - time.monotonic()))

    def diary(self, number: int, life: int = 0) -> dict[str, Any]:
        written = self.folder / f"{number}-{life}.json"
        assert written.exists(), (self.folder / f"{number}-{life}.log").read_text()[-3000:]
        return dict(json.loads(written.read_text()))


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
            process.wait(10)
        server.shutdown()


def require_alike(diaries: list[dict[str, Any]], key: str) -> int:
    """Check that what several replicas noted about a step is the same; return of how many steps."""
    common = set.intersection(*(set(diary[key]) for diary in diaries))
    for step in common:
        assert len({diary[key][step] for diary in diaries}) == 1, (key, step)
    return len(common)


def require_falling(diary: dict[str, Any]) -> None:
    losses = list(diary["losses"].values())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reducer", "momentum"),
    [("gs-sgd", "post"), ("gs-sgd", "local"), ("top-k", "post"), ("dense", "post")],
)
def test_others_go_on_without_a_replica_that_is_killed_and_take_it_in_again(
    tmp_path: Path, reducer: str, momentum: str
) -> None:
    with job(tmp_path, reducer=reducer, momentum=momentum) as running:
        others = [running.start(number) for number in range(2)]
        assert running.wait(running.start(2, fault="kill")) == -9
        again = running.start(2, life=1)
        assert [running.wait(process) for process in [*others, again]] == [0, 0, 0]
    survivors = [running.diary(number) for number in range(2)]
    joined = running.diary(2, life=1)

    for diary in survivors:
        require_falling(diary)
        assert diary["failures"] and all(one["state_kept"] for one in diary["failures"])
        counts = list(diary["replicas"].values())
        assert counts.count(REPLICAS) == FULL_STEPS and 2 in counts
    for key in ("parameters", "shared"):
        assert require_alike(survivors, key) > FULL_STEPS
        assert require_alike([*survivors, joined], key) >= 10
    assert joined["residual_on_joining"] == 0.0
    assert joined["joined_at"] > 8
    assert joined["final"] == survivors[0]["final"] == survivors[1]["final"]


@pytest.mark.slow
def test_a_replica_that_alone_misses_a_sum_takes_over_the_state_of_the_others(
    tmp_path: Path,
) -> None:
    with job(tmp_path, reducer="gs-sgd") as running:
        processes = [running.start(number) for number in range(2)]
        processes.append(running.start(2, fault="lose"))
        assert [running.wait(process) for process in processes] == [0, 0, 0]
    diaries = [running.diary(number) for number in range(REPLICAS)]

    assert [len(diary["failures"]) for diary in diaries] == [0, 0, 1]
    assert diaries[2]["failures"][0]["state_kept"]
    for key in ("parameters", "shared"):
        require_alike(diaries, key)
    assert len({diary["final"] for diary in diaries}) == 1


def test_other_groups_are_refused() -> None:
    import torchft

    class Manager:
        """Stand for a manager: that the group is looked at first needs no lighthouse."""

        _pg = torchft.ProcessGroupBabyNCCL()

    model = nn.Linear(4, 4)
    optimizer = torchft.Optimizer(Manager(), torch.optim.SGD(model.parameters(), lr=0.1))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedSetup, match="ProcessGroupGloo"):
        gsdist.attach_torchft(model, GsSgdConfig(), optimizer)
