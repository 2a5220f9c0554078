"""Ranks that are missing at the start, ports that are taken, SIGTERM, and what forked loaders hold."""

import re
import signal
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from gsdist.errors import ConfigError
from gsdist.training.inherited_connections import close_inherited_connections
from gsdist.training.rendezvous import meet
from tests.fault.job import Job, training

pytestmark = pytest.mark.timeout(400)
TERMINATED = 143
ENDLESS = 100_000


def test_a_missing_rank_is_named(tmp_path: Path) -> None:
    arguments = [*training(tmp_path), "--init-timeout", "6"]
    with Job.start(tmp_path, arguments, ranks=4, only=[0, 3]) as job:
        assert job.join() == [66, 66]
        for position in range(2):
            said = job.output(position)
            assert re.search(
                r"2 of 4 ranks arrived at .* missing: 1, 2|missing here: 1, 2", said
            ), said


def test_a_port_that_is_taken_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        with pytest.raises(ConfigError, match="rank 0 cannot listen at .* free port"):
            meet(0, 2, timedelta(seconds=1))
    monkeypatch.setenv("MASTER_PORT", "http")
    with pytest.raises(ConfigError, match="'http' is no port"):
        meet(0, 2, timedelta(seconds=1))


def test_rank_0_listens_only_where_it_was_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    store = meet(0, 1, timedelta(seconds=30))
    listening = [
        line.split()[1]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text().splitlines()
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{port:04X}")
    ]
    assert listening == [f"0100007F:{port:04X}"]
    del store


def test_sigterm_to_one_rank_ends_all_with_a_checkpoint(tmp_path: Path) -> None:
    options = ("--checkpoint-every", str(ENDLESS), "--checkpoint-async")
    arguments = training(tmp_path, *options, steps=ENDLESS, timeout=60)
    log = tmp_path / "run" / "metrics.jsonl"
    with Job.start(tmp_path, arguments, ranks=2) as job:
        while not (log.exists() and '"step": 8' in log.read_text()):
            assert job.processes[0].exitcode is None, job.output(0)
        job.signal(1, signal.SIGUSR1)
        assert job.wait_for(1, "the last collectives are in")
        job.signal(1, signal.SIGTERM)
        assert job.join() == [TERMINATED, TERMINATED], job.output(0) + job.output(1)
    (saved,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    assert (saved / "manifest.json").exists()
    dump = (tmp_path / "run" / "collectives-rank1.txt").read_text()
    assert re.search(r"bytes +done after 0\.\d+ s +step \d+, allreduce", dump), dump


def test_a_second_sigterm_ends_at_once_even_in_a_collective(tmp_path: Path) -> None:
    arguments = training(tmp_path, steps=ENDLESS, timeout=300)
    log = tmp_path / "run" / "metrics.jsonl"
    with Job.start(tmp_path, arguments, ranks=2) as job:
        while not (log.exists() and '"step": 3' in log.read_text()):
            assert job.processes[0].exitcode is None, job.output(0)
        job.signal(0, signal.SIGSTOP)
        job.signal(1, signal.SIGTERM)
        assert job.wait_for(1, "SIGTERM, stopping after a step")
        job.signal(1, signal.SIGTERM)
        assert job.join([1]) == [TERMINATED]
        assert "leaving at once" in job.output(1)


class OpenSockets(Dataset[int]):
    """Return how many of this process's descriptors are the parent's internet sockets."""

    def __init__(self, inodes: set[str]) -> None:
        self.inodes = inodes

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        return sum(str(link) in self.inodes for link in links)


def test_loading_processes_hold_no_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as client:
            inodes = {str(Path(f"/proc/self/fd/{s.fileno()}").readlink()) for s in (server, client)}
            held = {
                guard: list(DataLoader(OpenSockets(inodes), num_workers=1, worker_init_fn=guard))
                for guard in (None, close_inherited_connections)
            }
            client.sendall(b"still open here")
    assert int(held[None][0]) == 2, "the test sees nothing"
    assert int(held[close_inherited_connections][0]) == 0


@pytest.mark.slow
def test_torchrun_restarts_all_ranks_and_the_run_ends_well(tmp_path: Path) -> None:
    fault = '{"rank": 1, "step": 9, "action": "kill", "place": "allreduce"}'
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("--max-restarts", "2", "-m", "tests.fault.rank", fault),
        *training(tmp_path, "--checkpoint-every", "4", "--resume", timeout=60, steps=20),
        "--progress",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=380)
    assert done.returncode == 0, done.stderr
    assert "resumed after step 8" in done.stderr + done.stdout
    assert '"steps": 20' in (tmp_path / "run" / "summary.json").read_text()


@pytest.mark.slow
def test_torchrun_restarts_with_fewer_workers_keep_what_was_held_back(tmp_path: Path) -> None:
    for workers, steps in ((3, 8), (2, 16)):
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(workers), "-m", "gsdist"),
            *training(tmp_path, "--checkpoint-every", "4", "--resume", "--schedule", "constant",
                      timeout=60, steps=steps),
            "--progress",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stderr
    assert "resumed after step 8" in done.stderr + done.stdout
