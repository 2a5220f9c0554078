"""Run a benchmark's ranks in a lab whose rates were verified, and write down what came of it."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.exchange.referee import referee
from benchmarks.netlab import LabError, NetworkLab, RateError, RateMeasurement

__all__ = ["describe_lab", "run_in_lab", "verified_rates"]

_ATTEMPTS = 5
_PAUSE_SECONDS = 4.0
_TIME_LIMIT = 3600.0


def run_in_lab(
    module: str, plan: str, ranks: int, rate: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run `python -m MODULE PLAN ADDRESS KEY` on every rank of a lab.

    Returns what is to be known of the lab, and the JSON each rank wrote; none when the links do not have the
    rate asked for or a rank failed, which the lab's "fault" then says.

    Raises:
        LabUnavailable: this machine cannot have a lab.
    """
    described: dict[str, Any] = {"ranks": ranks, "rate": rate, "offloads": True, "fault": None}
    with (
        NetworkLab(ranks, rate, offloads=True) as lab,
        TemporaryDirectory(prefix="gsdist-plan-") as folder,
    ):
        try:
            achieved = verified_rates(lab)
        except RateError as error:
            return described | {"fault": str(error)}, []
        path = Path(folder) / "plan.json"
        path.write_text(plan)
        with referee(ranks, lab.counters) as (address, key):
            command = [sys.executable, "-m", module, str(path), address, key]
            run = lab.run(command, timeout=_TIME_LIMIT)
    described["achieved_bits_per_second"] = [one.achieved for one in achieved]
    try:
        run.check()
    except LabError as error:
        return described | {"fault": str(error)}, []
    return described, [json.loads(result.stdout) for result in run.ranks]


def verified_rates(lab: NetworkLab) -> tuple[RateMeasurement, ...]:
    """Verify the lab's rates; a busy machine gets some time to calm down.

    Raises:
        RateError: it did not.
    """
    for _ in range(_ATTEMPTS - 1):
        try:
            return lab.verify_rates()
        except RateError:
            time.sleep(_PAUSE_SECONDS)
    return lab.verify_rates()


def describe_lab(lab: Mapping[str, Any]) -> str:
    """Return a line for people: the rates achieved, or why nothing was measured."""
    head = f"P = {lab['ranks']}, {lab['rate']}: "
    if lab["fault"]:
        return f"{head}not measured, {lab['fault']}"
    return head + ", ".join(f"{one / 1e6:.1f}" for one in lab["achieved_bits_per_second"]) + " Mb/s"
