"""Be one rank of a job that is to fail: `gsdist` with a fault in it.

`python -m tests.fault.rank FAULT ARGUMENTS...` under a launcher, or `run_rank` in a process of a `Job`.
FAULT is JSON, or "none".
"""

import json
import os
import sys

import sklearn.datasets  # noqa: F401
import torch
import torch._dynamo
import torch.distributed.checkpoint
import torch.distributed.tensor
import torch.utils.tensorboard

import gsdist.cli.train  # noqa: F401  imported once, before the ranks are forked, as is all below
from gsdist.cli.main import main
from tests.fault.injection import Fault, install

__all__ = ["run_rank"]


def run_rank(
    log: str, environment: dict[str, str], fault: str | None, arguments: list[str]
) -> None:
    """Run one rank to its end in this process; its output goes to a file."""
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    if fault:
        install(Fault(**json.loads(fault)), int(environment["RANK"]))
    sys.exit(main(arguments))


if __name__ == "__main__":
    if sys.argv[1] != "none":
        install(Fault(**json.loads(sys.argv[1])), int(os.environ["RANK"]))
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[2:]))
