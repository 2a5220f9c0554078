"""Run the study: `python -m benchmarks.block_size --quick --json -`."""

import dataclasses
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import torch
import tyro

from benchmarks import environment
from benchmarks.block_size.study import Row, Study, run


def main(
    study: Study,
    quick: bool = False,
    json_path: Annotated[str | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Compare block sizes of the sketch's hash by the energy recovered from captured gradients.

    Args:
        study: what is trained and sketched.
        quick: few steps, settings and seeds, for a look at the output.
        json_path: write the result there; "-" is stdout, and the table then goes to stderr.
    """
    if quick:
        study = dataclasses.replace(
            study, steps=24, densities=(0.01,), column_factors=(2, 10), seeds=3
        )
    torch.set_num_threads(1)
    result = {"environment": environment.describe(1), "study": dataclasses.asdict(study)}
    table_to = sys.stderr if json_path == "-" else sys.stdout
    print(json.dumps(result, indent=2), file=table_to)
    print(_line(field.name for field in dataclasses.fields(Row)), file=table_to)
    result["rows"] = rows = []
    for row in map(dataclasses.asdict, run(study)):
        rows.append(row)
        print(_line(row.values()), file=table_to, flush=True)
    if json_path == "-":
        print(json.dumps(result, indent=2))
    elif json_path is not None:
        Path(json_path).write_text(json.dumps(result, indent=2) + "\n")


def _line(cells: Iterable[object]) -> str:
    return "".join(
        f"{cell:>15.4f}" if isinstance(cell, float) else f"{cell!s:>15}" for cell in cells
    )


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))
