"""The network lab on this machine's kernel: namespaces, rates, bytes, launching, cleaning up."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.netlab import LabError, LabUnavailable, NetworkLab, RateError
from benchmarks.netlab.kernel import in_namespace, read, require_rights_and_tools
from benchmarks.netlab.network import existing
from tests.processes import is_gone

try:
    require_rights_and_tools()
except LabUnavailable as error:
    pytest.skip(str(error), allow_module_level=True)

ROOT = Path(__file__).parents[2]
FRAME_HEADERS = 14 + 20 + 20 + 12
FRAME_PAYLOAD = 1500 - 20 - 20 - 12


def own() -> list[str]:
    """Return the namespaces this process made."""
    return [name for name in existing() if name.startswith(f"gsdist-lab-{os.getpid()}-")]


@pytest.fixture
def lab() -> Iterator[NetworkLab]:
    with NetworkLab(2, "100mbit") as made:
        yield made


def test_namespaces_appear_and_disappear_and_the_machine_keeps_its_network() -> None:
    before = read("ip", "-o", "link"), read("ip", "-o", "address"), read("tc", "qdisc")
    hosts_tcp = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text()
    with NetworkLab(3, groups=3, uplink_rate="1gbit"):
        assert len(own()) == 4
        assert (
            read("ip", "-o", "link"),
            read("ip", "-o", "address"),
            read("tc", "qdisc"),
        ) == before
        assert Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text() == hosts_tcp
    assert own() == []


def test_an_exception_inside_the_block_cleans_up() -> None:
    with pytest.raises(ZeroDivisionError), NetworkLab(2):
        raise ZeroDivisionError
    assert own() == []


def test_latency_works_or_is_refused_by_name_and_nothing_is_left() -> None:
    try:
        with NetworkLab(2, latency_ms=20.0) as lab:
            run = lab.run(["ping", "-c1", "10.77.0.2"], timeout=10)
            run.check()
    except LabUnavailable as error:
        assert "netem" in str(error)
    assert own() == []


def test_100_mbit_is_met_and_1_gbit_is_reported(
    lab: NetworkLab, record_property: Callable[[str, object], None]
) -> None:
    slow = lab.measure_rate(seconds=0.7)
    assert slow.asked == 100e6
    assert abs(slow.relative_error) < 0.1
    with NetworkLab(2, "1gbit") as fast:
        achieved = fast.measure_rate(seconds=0.7).achieved
    record_property("achieved_at_1gbit", achieved)
    # a busy machine may fall short, but a shaper never gives more
    assert 100e6 < achieved < 1.05e9


def test_a_link_of_another_rate_and_the_uplink_between_groups_are_met() -> None:
    with NetworkLab(4, "500mbit", groups=2, uplink_rate="50mbit", rank_rates={1: "20mbit"}) as lab:
        assert abs(lab.measure_rate(0, 1, seconds=0.5).relative_error) < 0.1
        assert abs(lab.measure_rate(0, 2, seconds=0.5).relative_error) < 0.1
        uplinks = lab.counters().uplinks
        assert uplinks[0].sent_bytes == uplinks[1].received_bytes > 50e6 / 8 * 0.5


def test_a_rate_that_is_missed_is_refused(lab: NetworkLab) -> None:
    with pytest.raises(RateError, match=r"100\.0 Mb/s asked"):
        lab.verify_rates(tolerance=-1.0, seconds=0.1)


@pytest.mark.parametrize("offloads", [False, True])
def test_bytes_counted_are_bytes_sent_plus_framing(offloads: bool) -> None:
    size = 2_000_000
    with NetworkLab(2, "1gbit", offloads=offloads) as lab:
        prefix = own()[0].rsplit("-", 1)[0]
        listener = in_namespace(
            f"{prefix}-rank1", lambda: socket.create_server(("10.77.0.2", 5000))
        )
        before = lab.counters()
        with listener, in_namespace(f"{prefix}-rank0", socket.socket) as sender:
            sender.connect(("10.77.0.2", 5000))
            receiver, _ = listener.accept()
            with receiver:
                # less than a socket buffer at a time, so that one thread can do both sides
                for _ in range(size // 20_000):
                    sender.sendall(bytes(20_000))
                    assert len(receiver.recv(20_000, socket.MSG_WAITALL)) == 20_000
        traffic = lab.counters() - before
    sent, received = traffic.ranks
    assert sent.sent_bytes == received.received_bytes
    assert received.sent_bytes == sent.received_bytes
    assert sent.dropped_packets == received.dropped_packets == 0
    # every frame carries its headers; on a busy machine TCP repeats a segment now and then
    surplus = sent.sent_bytes - size - FRAME_HEADERS * sent.sent_packets
    assert 0 <= surplus < size * 0.005
    assert sent.sent_packets >= size / FRAME_PAYLOAD


def test_an_idle_lab_is_silent(lab: NetworkLab) -> None:
    before = lab.counters()
    time.sleep(1.5)
    idle = lab.counters() - before
    assert all(link.sent_packets == link.received_packets == 0 for link in idle.ranks)


ALLREDUCE = """
import torch
import torch.distributed as dist
from benchmarks.netlab import interface_counters
dist.init_process_group("gloo")
vector = torch.ones(1_000_000)
dist.all_reduce(torch.ones(1))
dist.barrier()
before = interface_counters()
dist.all_reduce(vector)
sent = (interface_counters() - before).sent_bytes
assert vector.eq(dist.get_world_size()).all()
print(sent)
dist.barrier()
dist.destroy_process_group()
"""


def test_gloo_all_reduce_works_inside_and_sends_what_the_ring_model_says(lab: NetworkLab) -> None:
    run = lab.run(
        [sys.executable, "-c", ALLREDUCE], timeout=30, environment={"PYTHONPATH": str(ROOT)}
    )
    run.check()
    ranks = 2
    payload = 2 * (ranks - 1) / ranks * 4_000_000
    framed = payload * (1 + FRAME_HEADERS / FRAME_PAYLOAD)
    for result, link in zip(run.ranks, run.traffic.ranks, strict=True):
        # acknowledgements of what came in are on top: at most one per full frame
        acknowledgements = payload / FRAME_PAYLOAD * FRAME_HEADERS
        assert framed * 0.99 < int(result.stdout) < framed + acknowledgements
        # the whole run: rendezvous and connections too
        assert int(result.stdout) < link.sent_bytes < int(result.stdout) + 50_000


def test_processes_that_left_their_session_do_not_outlive_the_run(lab: NetworkLab) -> None:
    run = lab.run(["sh", "-c", "setsid sleep 300 & echo $!"], timeout=10)
    run.check()
    assert all(is_gone(int(result.stdout)) for result in run.ranks)


def test_a_closed_lab_says_so(lab: NetworkLab) -> None:
    lab.close()
    with pytest.raises(LabError, match="not open"):
        lab.counters()


def test_the_command_writes_one_json_document() -> None:
    options = "--ranks 2 --rate 10mbit --tolerance 0.2 --json".split()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.netlab", *options, "--", "sh", "-c", "echo rank $RANK"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [rank["stdout"] for rank in result["ranks"]] == ["rank 0\n", "rank 1\n"]
    assert [rate["asked"] for rate in result["rates"]] == [10e6, 10e6]


WAITING = """
import os, signal
from benchmarks.netlab import NetworkLab
# a test runner in the background may have passed "ignore" on
signal.signal(signal.SIGINT, signal.default_int_handler)
with NetworkLab(2) as lab:
    print("ready", flush=True)
    lab.run(["sh", "-c", "touch $READY$RANK; sleep 300"], timeout=300)
"""


def start_waiting(folder: Path) -> "subprocess.Popen[str]":
    """Start a program with an open lab whose ranks sleep; return once they do."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "READY": f"{folder}/"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    limit = time.monotonic() + 20
    while len(list(folder.iterdir())) < 2:
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.05)
    return process


def of(process: "subprocess.Popen[str]") -> list[str]:
    return [name for name in existing() if name.startswith(f"gsdist-lab-{process.pid}-")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_clean_up(number: signal.Signals, tmp_path: Path) -> None:
    process = start_waiting(tmp_path)
    try:
        names = of(process)
        assert len(names) == 3
        sleepers = [pid for name in names for pid in read("ip", "netns", "pids", name).split()]
        assert len(sleepers) >= 2
        process.send_signal(number)
        # an impatient user's second one must not stop the cleaning up
        time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(15) != 0
    finally:
        process.kill()
        process.wait()
    assert of(process) == []
    assert all(is_gone(int(pid)) for pid in sleepers)


def test_the_next_lab_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    process = start_waiting(tmp_path)
    process.kill()
    process.wait()
    assert len(of(process)) == 3
    with NetworkLab(1):
        assert of(process) == []
        assert len(own()) == 2
