"""What the program's own use of MPI means for the backend: thread levels and communicators."""

from pathlib import Path

import pytest

from tests.distributed.mpi_job import require_mpi, run_job

require_mpi()

BEFORE = """
import mpi4py
mpi4py.rc.thread_level = "{level}"
from mpi4py import MPI
import torch
import torch.distributed as dist
from gsdist.collectives.mpi import use_communicator
from gsdist.errors import ConfigError, UnsupportedSetup
from tests.distributed.collective_script import Script
"""
SERIALIZED = """
assert MPI.Query_thread() == MPI.THREAD_SERIALIZED
dist.init_process_group("mpi4py")
found, expected = Script(dist.group.WORLD, (torch.float32, torch.bfloat16)).run()
for name, value in expected.items():
    torch.testing.assert_close(found[name], value, rtol=0, atol=0)
# no thread to wait in for each group: beginning an operation must not hold up the next one
groups = [dist.new_group(), dist.new_group()]
if dist.get_rank():
    groups.reverse()
works = [dist.all_reduce(torch.ones(100_000), group=group, async_op=True) for group in groups]
for work in works:
    work.wait()
print("serialized", len(found))
dist.destroy_process_group()
"""
FUNNELED = """
assert MPI.Query_thread() == MPI.THREAD_FUNNELED
try:
    use_communicator(MPI.COMM_WORLD)
except UnsupportedSetup as error:
    print("refused:", error)
"""
COMMUNICATOR = """
world = MPI.COMM_WORLD
if world.rank == 1:
    world.Split(MPI.UNDEFINED)
else:  # ranks 0 and 2, in reverse order
    own = world.Split(0, -world.rank)
    use_communicator(own)
    dist.init_process_group("mpi4py")
    assert (dist.get_rank(), dist.get_world_size()) == (own.rank, 2) == (1 - world.rank // 2, 2)
    total = torch.tensor([float(world.rank)])
    dist.all_reduce(total)
    assert total.item() == 2.0
    alone = dist.new_group([1])
    if own.rank == 1:
        dist.all_reduce(total, group=alone)
        assert total.item() == 2.0
    try:
        use_communicator(own)
    except ConfigError as error:
        print("too late:", error)
    dist.destroy_process_group()
"""


def run(folder: Path, level: str, script: str, ranks: int) -> str:
    file = folder / "script.py"
    file.write_text(BEFORE.format(level=level) + script)
    job = run_job(ranks, [str(file)])
    assert job.exit_code == 0, job.output
    return job.output


def test_all_groups_share_one_thread_where_mpi_allows_no_more(tmp_path: Path) -> None:
    assert run(tmp_path, "serialized", SERIALIZED, 3).count("serialized ") == 3


def test_mpi_started_for_the_main_thread_alone_is_refused(tmp_path: Path) -> None:
    output = run(tmp_path, "funneled", FUNNELED, 1)
    assert "refused: the program has started MPI with MPI_THREAD_FUNNELED" in output


@pytest.mark.slow
def test_groups_live_on_a_communicator_of_the_program(tmp_path: Path) -> None:
    assert run(tmp_path, "multiple", COMMUNICATOR, 3).count("too late: ") == 2
