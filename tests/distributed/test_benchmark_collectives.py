"""The benchmark of collectives, as a program that reads its JSON sees it."""

import json
import subprocess
import sys

import pytest

from benchmarks.netlab import LabUnavailable
from benchmarks.netlab.kernel import require_rights_and_tools
from tests.distributed.mpi_job import ROOT, require_mpi

require_mpi()

QUICK = ["--quick", "--sizes", "4", "100000", "--json", "-"]


def cells(*options: str) -> dict[tuple[str, str, int], float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.collectives", *QUICK, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    if "not measured" in done.stderr:
        pytest.skip("this machine is too busy to shape its links")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "MPI" in found["environment"]["mpi"]
    return {
        (cell["backend"], cell["operation"], cell["bytes"]): cell["microseconds_median"]
        for cell in found["cells"]
    }


@pytest.mark.slow
def test_there_is_a_cell_for_every_backend_operation_and_size() -> None:
    found = cells("--ranks", "2")
    assert {
        (backend, operation, size)
        for backend in ("bare-mpi4py", "mpi4py", "gloo")
        for operation in ("all_reduce", "broadcast", "all_gather", "reduce_scatter")
        for size in (4, 100_000)
    } == set(found)
    assert all(microseconds > 0 for microseconds in found.values())


@pytest.mark.slow
def test_shaped_links_bound_what_bare_mpi_can_do() -> None:
    try:
        require_rights_and_tools()
    except LabUnavailable as error:
        pytest.skip(str(error))
    options = ["--rates", "50mbit", "--operations", "all_reduce", "--backends", "bare-mpi4py"]
    found = cells(*options, "mpi4py", "--sizes", "2000000")
    # each of two ranks must send at least a whole vector's worth
    assert min(found.values()) > 0.9 * 2_000_000 * 8 / 50e6 * 1e6
