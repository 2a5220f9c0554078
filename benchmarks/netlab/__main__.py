"""Run a command on shaped hosts: `python -m benchmarks.netlab --ranks 4 --rate 1gbit -- COMMAND...`."""

import dataclasses
import json
import platform
import signal
import sys
from typing import Annotated, Any

import tyro

from benchmarks.netlab.errors import LabError
from benchmarks.netlab.lab import NetworkLab
from benchmarks.netlab.launch import LabRun
from benchmarks.netlab.probe import RateMeasurement
from benchmarks.netlab.settings import LabSettings
from gsdist.errors import ConfigError

_TIME_LIMIT_CODE = 124
_LAB_CODE = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Choose the hosts, how long the command may run, and the form of the output."""

    settings: tyro.conf.OmitArgPrefixes[LabSettings]
    timeout: float = 600.0
    """Seconds after which every rank still running is killed."""
    tolerance: float = 0.05
    """Largest share by which a measured rate may miss the rate asked; more, and the command is not run."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Write one JSON document to standard output in place of the ranks' output."""


def main(words: list[str]) -> int:
    """Measure the links, run the command once per rank, and report; return the exit code."""
    own, command = _split(words)
    arguments = tyro.cli(
        Arguments, args=own, prog="python -m benchmarks.netlab", description=__doc__
    )
    try:
        with NetworkLab(**_fields(arguments.settings)) as lab:
            rates = lab.verify_rates(tolerance=arguments.tolerance)
            run = lab.run(command, timeout=arguments.timeout) if command else None
    except (ConfigError, LabError) as error:
        print(f"error: {error}", file=sys.stderr)
        return _LAB_CODE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    if arguments.json:
        print(json.dumps(document(arguments.settings, rates, run), indent=2))
    else:
        _print_text(rates, run)
    return exit_code(run)


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in words:
        return words, []
    position = words.index("--")
    return words[:position], words[position + 1 :]


def _fields(settings: LabSettings) -> dict[str, Any]:
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    # a read-only view is not JSON
    return values | {"rank_rates": dict(settings.rank_rates)}


def document(
    settings: LabSettings, rates: tuple[RateMeasurement, ...], run: LabRun | None
) -> dict[str, Any]:
    """Return everything measured, ready for JSON."""
    return {
        "schema_version": 1,
        "kernel": platform.release(),
        "settings": _fields(settings),
        "rates": [
            dataclasses.asdict(rate) | {"relative_error": rate.relative_error} for rate in rates
        ],
        "ranks": [dataclasses.asdict(result) for result in run.ranks] if run else [],
        "traffic": dataclasses.asdict(run.traffic) if run else None,
    }


def exit_code(run: LabRun | None) -> int:
    """Return 0 for success, 124 for a time limit, else the code of the first rank that failed by itself."""
    if run is None or run.ok:
        return 0
    if any(result.ended == "killed at the time limit" for result in run.ranks):
        return _TIME_LIMIT_CODE
    first = next(
        result.exit_code
        for result in run.ranks
        if result.exit_code and result.ended == "ended by itself"
    )
    return first if first > 0 else 128 - first


def _print_text(rates: tuple[RateMeasurement, ...], run: LabRun | None) -> None:
    for rate in rates:
        asked = "unlimited" if rate.asked is None else f"{rate.asked / 1e6:.1f} Mb/s"
        print(
            f"rank {rate.source} to rank {rate.destination}: {rate.achieved / 1e6:.1f} Mb/s (asked: {asked})"
        )
    for result in run.ranks if run else ():
        for text in (result.stdout, result.stderr):
            for line in text.splitlines():
                print(f"[rank {result.rank}] {line}")
    for result, link in zip(run.ranks, run.traffic.ranks, strict=True) if run else ():
        print(
            f"rank {result.rank}: {result.ended} after {result.seconds:.2f} s with exit code "
            f"{result.exit_code}, sent {link.sent_bytes} bytes, received {link.received_bytes}, "
            f"{link.dropped_packets} frames dropped"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
