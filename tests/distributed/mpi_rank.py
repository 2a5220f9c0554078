"""Be one rank of `run_mpi_ranks`."""

import sys
from datetime import timedelta
from importlib import import_module
from pathlib import Path

import torch
import torch.distributed as dist

from gsdist.collectives.mpi import BACKEND


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    module, function, arguments = torch.load(folder / "call", weights_only=False)
    dist.init_process_group(BACKEND, timeout=timedelta(seconds=30))
    rank, world_size = dist.get_rank(), dist.get_world_size()
    result = getattr(import_module(module), function)(rank, world_size, *arguments)
    torch.save(result, folder / f"result-{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
