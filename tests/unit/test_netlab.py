"""The pure parts of the network lab, and its refusal without rights."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.netlab import Counters, LabCounters, LabSettings, interface_counters, parse_rate
from benchmarks.netlab.__main__ import document, exit_code
from benchmarks.netlab.launch import LabRun, RankResult, rank_environment, run_processes
from benchmarks.netlab.shaping import Shaper
from gsdist.errors import ConfigError
from gsdist.training.launch import detect_launch
from tests.processes import is_gone

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("100mbit", 100_000_000.0),
        ("1gbit", 1_000_000_000.0),
        ("2.5Gbit", 2_500_000_000.0),
        ("1500kbit", 1_500_000.0),
        ("unlimited", None),
    ],
)
def test_rates_are_read_in_decimal_units(text: str, expected: float | None) -> None:
    assert parse_rate(text) == expected


@pytest.mark.parametrize(
    "text", ["", "100", "1 gbit", "1gbps", "-1mbit", "1e3mbit", "0mbit", "1tbit"]
)
def test_what_is_no_rate_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match=repr(text)):
        parse_rate(text)


@pytest.mark.parametrize("text", ["999kbit", "101gbit"])
def test_rates_no_shaper_can_hold_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="1mbit to 100gbit"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ranks": 0}, "ranks = 0"),
        ({"ranks": 251}, "ranks = 251"),
        ({"ranks": 2, "rank_rates": {2: "1gbit"}}, "names rank 2"),
        ({"ranks": 2, "rank_rates": {1: "fast"}}, "'fast'"),
        ({"ranks": 4, "groups": 3}, "groups = 3"),
        ({"ranks": 4, "uplink_rate": "1gbit"}, "needs groups > 1"),
        ({"ranks": 2, "latency_ms": -1.0}, "latency_ms = -1.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LabSettings(**settings)  # type: ignore[arg-type]


def test_the_slowest_link_on_the_way_decides() -> None:
    settings = LabSettings(
        ranks=4, rate="10gbit", groups=2, uplink_rate="1gbit", rank_rates={3: "100mbit"}
    )
    assert settings.path_rate(0, 1) == 10e9
    assert settings.path_rate(0, 2) == 1e9
    assert settings.path_rate(3, 0) == settings.path_rate(2, 3) == 100e6
    assert LabSettings(ranks=2).path_rate(0, 1) is None


@pytest.mark.parametrize("rate", [1e6, 100e6, 1e9, 10e9, 100e9])
def test_two_of_the_largest_buffers_fit_in_the_bucket(rate: float) -> None:
    shaper = Shaper(rate=rate)
    assert 1514 < shaper.segment <= 65536
    assert 2 * shaper.segment <= shaper.burst < shaper.queue
    assert shaper.burst / (rate / 8) <= 0.001 or shaper.burst == 24_000


def test_latency_goes_before_the_shaper() -> None:
    first, second = Shaper(rate=1e9, latency_ms=2.5).lines("eth0")
    assert first.startswith("qdisc add dev eth0 root handle 1: netem delay 2.5ms")
    assert second.startswith("qdisc add dev eth0 parent 1:1 handle 10: tbf rate 1000000000bit")


def test_ranks_get_an_environment_the_trainer_understands() -> None:
    environment = rank_environment(2, 4, "10.77.0.1", 29500)
    launch = detect_launch(environment)
    assert (launch.rank, launch.world_size, launch.local_rank) == (2, 4, 0)
    assert environment["MASTER_ADDR"] == "10.77.0.1"
    assert environment["GLOO_SOCKET_IFNAME"] == "eth0"


def count(*values: int) -> Counters:
    return Counters(
        sent_bytes=values[0],
        sent_packets=values[1],
        received_bytes=values[2],
        received_packets=values[3],
        dropped_packets=values[4],
    )


def test_the_difference_of_two_counts_is_taken_link_by_link() -> None:
    earlier = LabCounters(ranks=(count(1, 2, 3, 4, 5), count(0, 0, 0, 0, 0)), uplinks=())
    later = LabCounters(ranks=(count(11, 22, 33, 44, 55), count(1, 1, 1, 1, 1)), uplinks=())
    assert (later - earlier).ranks == (count(10, 20, 30, 40, 50), count(1, 1, 1, 1, 1))


def test_interface_counters_are_read_by_their_columns(tmp_path: Path) -> None:
    table = tmp_path / "dev"
    table.write_text(
        "Inter-|   Receive                          |  Transmit\n"
        " face |bytes packets errs drop fifo frame compressed multicast|bytes packets ...\n"
        "    lo:       7       1    0    0    0     0          0         0        7       1"
        "    0    0    0     0       0          0\n"
        "  eth0: 1234 5 0 0 0 0 0 0 6789 10 0 0 0 0 0 0\n"
    )
    assert interface_counters(path=table) == count(6789, 10, 1234, 5, 0)
    with pytest.raises(KeyError, match="eth1"):
        interface_counters("eth1", path=table)


def run_here(script: str, ranks: int, **options: float) -> tuple[RankResult, ...]:
    environments = [{**os.environ, "RANK": str(rank)} for rank in range(ranks)]
    options = {"timeout": 10.0, "failure_grace": 0.2} | options
    return run_processes(lambda _: ["sh", "-c", script], environments, **options)


def test_every_rank_gets_its_own_environment_and_output() -> None:
    results = run_here("echo out $RANK; echo err $RANK >&2; exit $RANK", 3, failure_grace=10)
    assert [result.stdout for result in results] == ["out 0\n", "out 1\n", "out 2\n"]
    assert [result.stderr for result in results] == ["err 0\n", "err 1\n", "err 2\n"]
    assert [result.exit_code for result in results] == [0, 1, 2]


def test_a_rank_that_outlives_the_limit_is_killed_with_its_children() -> None:
    results = run_here("sleep 300 & echo $!; wait", 2, timeout=0.5)
    assert {result.ended for result in results} == {"killed at the time limit"}
    for result in results:
        assert is_gone(int(result.stdout))


def test_the_others_are_killed_soon_after_one_rank_failed() -> None:
    results = run_here("[ $RANK = 1 ] && exit 7; sleep 300", 3)
    assert [result.ended for result in results] == [
        "killed after another rank failed",
        "ended by itself",
        "killed after another rank failed",
    ]
    run = LabRun(ranks=results, traffic=LabCounters(ranks=()))
    assert exit_code(run) == 7
    with pytest.raises(RuntimeError, match=r"^rank 1 ended by itself, exit code 7"):
        run.check()


def test_the_document_is_json_with_the_traffic_per_rank() -> None:
    settings = LabSettings(ranks=1, rank_rates={0: "1gbit"})
    run = LabRun(ranks=run_here("true", 1), traffic=LabCounters(ranks=(count(1, 2, 3, 4, 5),)))
    read = json.loads(json.dumps(document(settings, (), run)))
    assert read["schema_version"] == 1
    assert read["settings"]["rank_rates"] == {"0": "1gbit"}
    assert read["traffic"]["ranks"][0]["sent_bytes"] == 1
    assert read["ranks"][0]["exit_code"] == 0


def test_without_rights_one_error_says_what_is_missing_and_the_way_out() -> None:
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("this is root, and there is no setpriv to give its rights up")
    unprivileged = (
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    )
    done = subprocess.run(
        [*unprivileged, sys.executable, "-m", "benchmarks.netlab", "--ranks", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 3
    assert done.stderr.startswith("error: A network lab cannot be made here: missing")
    assert "CAP_NET_ADMIN" in done.stderr
    assert "unshare --user" in done.stderr
