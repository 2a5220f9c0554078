"""A network that is cut, for a moment or for good, between hosts with links of their own."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from benchmarks.netlab import LabUnavailable, NetworkLab
from benchmarks.netlab.kernel import require_rights_and_tools
from tests.fault.job import training

try:
    require_rights_and_tools()
except LabUnavailable as error:
    pytest.skip(str(error), allow_module_level=True)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = 300  # long enough for a cut in the middle


def run_with_a_cut(folder: Path, *, seconds: float | None, deadline: float) -> list[int]:
    """Cut rank 1's host off in the middle of a run, for some seconds or for good; return exit codes.

    Nothing is cut with 0 seconds.
    """
    options = ("--deterministic", "--save-model", str(folder / "model.pt"))
    command = [sys.executable, "-m", "gsdist"]
    command += training(folder, *options, steps=STEPS, timeout=deadline)
    with NetworkLab(2, "100mbit") as lab:
        log = folder / "run" / "metrics.jsonl"

        def switch_port(state: str) -> None:
            # The switch forwards nothing of that host; nobody's sockets are closed.
            port = ["dev", "port1", state]
            subprocess.run(["ip", "-n", lab._names.switch, "link", "set", *port], check=True)

        def cut() -> None:
            while not (log.exists() and '"step": 5' in log.read_text()):
                time.sleep(0.02)
            switch_port("down")
            if seconds is not None:
                time.sleep(seconds)
                switch_port("up")

        if seconds != 0:
            threading.Thread(target=cut, daemon=True).start()
        done = lab.run(command, timeout=280, failure_grace=4 * deadline)
    return [rank.exit_code for rank in done.ranks]


def test_a_cut_that_heals_changes_no_bit(tmp_path: Path) -> None:
    for name, seconds in (("whole", 0.0), ("cut", 3.0)):
        assert run_with_a_cut(tmp_path / name, seconds=seconds, deadline=60) == [0, 0]
    whole, cut = ((tmp_path / name / "model.pt").read_bytes() for name in ("whole", "cut"))
    assert whole == cut


def test_a_cut_that_stays_ends_both_sides(tmp_path: Path) -> None:
    codes = run_with_a_cut(tmp_path, seconds=None, deadline=10)
    assert all(code in (66, 67) for code in codes), codes
