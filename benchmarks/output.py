"""Print what a benchmark ran on and write down what it found."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from benchmarks import environment

__all__ = ["begin", "write_report"]


def begin(target: str | None, *, threads: int, **more: Any) -> tuple[dict[str, Any], TextIO]:
    """Print the environment, and `more` of it; return it and where to print tables.

    With a target of '-' nothing but the JSON goes to standard output.
    """
    out = sys.stderr if target == "-" else sys.stdout
    described = {**environment.describe(threads), **more}
    for key, value in described.items():
        print(f"{key}: {value}", file=out)
    return described, out


def write_report(report: Mapping[str, Any], target: str | None, *, indent: int | None = 2) -> None:
    """Write JSON to a file, to standard output ('-'), or nowhere."""
    text = json.dumps(report, indent=indent)
    if target == "-":
        print(text)
    elif target:
        Path(target).write_text(text + "\n")
