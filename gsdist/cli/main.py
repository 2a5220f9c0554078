"""Find the command a user asked for and turn what goes wrong into one message and an exit code.

Commands live in modules of their own, imported only when they run: `gsdist --help` needs no torch.
"""

import argparse
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module

from gsdist.errors import (
    CheckpointError,
    CollectiveError,
    ConfigMismatch,
    DataError,
    GsdistError,
    NonFiniteGradient,
    PeerLost,
    UnsupportedSetup,
    WireFormatError,
)

__all__ = ["main"]

_COMMANDS = {
    "train": ("gsdist.cli.train", "train a workload on one or many workers"),
    "plan": ("gsdist.cli.plan", "predict what each exchange method would cost"),
    "doctor": ("gsdist.cli.doctor", "check this installation"),
    "data": ("gsdist.cli.data", "fetch a data set"),
    "report": ("gsdist.cli.report", "compare runs on one HTML page"),
    "compact": ("gsdist.cli.compact", "cut out of a trained network what was pruned"),
    "pfgdf": ("gsdist.cli.pfgdf", "find how far each layer can be pruned by PFGDF"),
}
_EXIT_CODES: dict[type[GsdistError], int] = {
    ConfigMismatch: 64,
    WireFormatError: 65,
    PeerLost: 67,
    CollectiveError: 66,
    NonFiniteGradient: 68,
    CheckpointError: 69,
    UnsupportedSetup: 70,
    DataError: 71,
}
_RANK_VARIABLES = (
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
)
"""Of torchrun, Open MPI and MPICH. `gsdist.training.launch` reads them with care, but it needs torch."""
_USAGE_ERROR = 2
_INTERRUPTED = 130
_EPILOG = """\
examples:
  gsdist doctor
  gsdist data cifar10
  gsdist train classification --reducer gs-sgd --model resnet20
  torchrun --nproc-per-node 2 -m gsdist train classification
  gsdist plan --world-size 64 --bandwidth 1Gbit --latency 1ms --params 25e6
  gsdist report runs/latest --output report.html

`gsdist COMMAND --help` lists a command's options.

exit codes: 2 usage or settings, 64 ranks disagree, 65 wire format,
66 a collective failed or was late, 67 a rank was lost,
68 gradient not finite, 69 checkpoint, 70 unsupported set-up, 71 data,
143 ended by SIGTERM
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return _USAGE_ERROR
    logging.basicConfig(format="gsdist: %(message)s", stream=sys.stderr)
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        command = import_module(_COMMANDS[options.command][0])
        return int(command.main(options.arguments))
    except GsdistError as error:
        if options.debug:
            traceback.print_exc()
        print(f"gsdist: error: {_where()}{error}", file=sys.stderr)
        kinds = (code for kind, code in _EXIT_CODES.items() if isinstance(error, kind))
        return next(kinds, _USAGE_ERROR)
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("gsdist: interrupted", file=sys.stderr)
        return _INTERRUPTED


def _show_warning(message: Warning | str, *_: object) -> None:
    """Print what a warning says on one line, without the line of code it came from."""
    print(f"gsdist: warning: {_where()}{message}", file=sys.stderr)


def _where() -> str:
    """Name the rank, unless there is only one."""
    for rank, world_size in _RANK_VARIABLES:
        if os.environ.get(world_size, "1") != "1" and rank in os.environ:
            return f"[rank {os.environ[rank]}/{os.environ[world_size]}] "
    return ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gsdist",
        description="Train PyTorch models whose workers sit behind a slow network.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_PrintVersion, help="print the version and exit")
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of an error (before COMMAND)"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, (_, purpose) in _COMMANDS.items():
        # The command parses its own arguments, so --help among them is its own, too.
        command = commands.add_parser(name, help=purpose, add_help=False, prefix_chars="\0")
        command.add_argument("arguments", nargs="*")
    return parser


class _PrintVersion(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, **options: object) -> None:
        super().__init__(option_strings, dest, nargs=0, **options)  # type: ignore[arg-type]

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from gsdist import __version__

        print(f"gsdist {__version__}")
        parser.exit()
