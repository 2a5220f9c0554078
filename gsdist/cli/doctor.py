"""Check this installation: `gsdist doctor`."""

import argparse
import json
import multiprocessing
import platform
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

__all__ = ["inspect_installation", "main", "self_test"]

_PACKAGES = ("torch", "torchvision", "numpy", "numba", "tyro", "tensorboard", "mpi4py")
_WORLD_SIZE = 2
_TIME_LIMIT = 60.0
_DIMENSION = 100_000
_HEAVY = 50


def main(arguments: Sequence[str]) -> int:
    """Print what was found; return 1 when the self-test fails."""
    parser = argparse.ArgumentParser(
        prog="gsdist doctor",
        description="Show versions, what the extension was built with and which backends there\n"
        "are, and let two processes sum their sketches. Exit code 1 when that fails.",
        epilog="examples:\n  gsdist doctor\n  gsdist doctor --json | jq .backends",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    options = parser.parse_args(arguments)
    findings = inspect_installation()
    failure = self_test()
    findings["self_test"] = {"passed": failure is None, "failure": failure}
    print(json.dumps(findings, indent=1) if options.json else _as_text(findings))
    return 0 if failure is None else 1


def inspect_installation() -> dict[str, Any]:
    """Return versions, the build of the extension and the available backends."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        from gsdist import __version__, build_info

        build = build_info()
    import torch
    import torch.distributed as dist

    mpi = _mpi_library()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {"gsdist": __version__} | {name: _version(name) for name in _PACKAGES},
        "extension": build,
        "backends": {
            "gloo": dist.is_gloo_available(),
            "nccl": dist.is_nccl_available(),
            "mpi4py": mpi is not None,
        },
        "mpi": mpi or "not available: pip install 'gsdist[mpi]'",
        "cuda_devices": torch.cuda.device_count(),
        "warnings": [str(warning.message) for warning in caught],
    }


def self_test() -> str | None:
    """Sum sketches over two gloo processes and check the result; return what failed, or None."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        pipes = [context.Pipe(duplex=False) for _ in range(_WORLD_SIZE)]
        workers = [
            context.Process(target=_worker, args=(rank, store, sender), daemon=True)
            for rank, (_, sender) in enumerate(pipes)
        ]
        for worker in workers:
            worker.start()
        for _, sender in pipes:
            sender.close()
        try:
            answers = [_answer(receiver) for receiver, _ in pipes]
        finally:
            for worker in workers:
                worker.kill()
                worker.join()
    failures = [
        f"rank {rank}: {answer}" for rank, answer in enumerate(answers) if answer is not None
    ]
    return "; ".join(failures) or None


def _answer(receiver: Connection) -> str | None:
    if not receiver.poll(_TIME_LIMIT):
        return f"no answer within {_TIME_LIMIT:g} s"
    try:
        answer: str | None = receiver.recv()
    except EOFError:
        return "the process died"
    return answer


def _worker(rank: int, store: str, sender: Connection) -> None:
    import torch.distributed as dist

    try:
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(store, _WORLD_SIZE),  # type: ignore[attr-defined]
            rank=rank,
            world_size=_WORLD_SIZE,
            timeout=timedelta(seconds=_TIME_LIMIT / 2),
        )
        sender.send(_check_merge(rank))
        dist.destroy_process_group()
    except Exception as error:
        sender.send(f"{type(error).__name__}: {error}")


def _check_merge(rank: int) -> str | None:
    """Sketch a vector with a few heavy entries, sum over ranks, and look for all of them."""
    import torch
    import torch.distributed as dist

    from gsdist.sketch import CountSketch, SketchFormat

    # Whole numbers, so that sums are exact in any order.
    generator = torch.Generator().manual_seed(7)
    vectors = torch.randint(-2, 3, (_WORLD_SIZE, _DIMENSION), generator=generator).float()
    heavy = torch.randperm(_DIMENSION, generator=generator)[:_HEAVY].sort().values
    vectors[:, heavy] += 10_000.0
    sketch_format = SketchFormat(rows=5, columns=8192, seed=1, dimension=_DIMENSION)

    def sketch_of(vector: torch.Tensor) -> CountSketch[torch.Tensor]:
        sketch = CountSketch(sketch_format, torch.zeros(sketch_format.table_shape))
        sketch.encode(vector)
        return sketch

    merged = sketch_of(vectors[rank])
    dist.all_reduce(merged.table)
    if not torch.equal(
        torch.as_tensor(merged.table), torch.as_tensor(sketch_of(vectors.sum(0)).table)
    ):
        return "the sum of the sketches is not the sketch of the sum"
    found, _ = merged.heavy_hitters(_HEAVY)
    if not torch.equal(found, heavy):
        return "the merged sketch does not name the heavy coordinates"
    return None


def _mpi_library() -> str | None:
    """Return name and version of the MPI library that mpi4py finds, without starting it."""
    # in a process of its own: an MPI library that is broken ends whoever loads it
    script = (
        "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; "
        "print(MPI.Get_library_version().splitlines()[0].split(',')[0])"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=_TIME_LIMIT
        )
    except subprocess.TimeoutExpired:
        return None
    return " ".join(done.stdout.split()) if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _as_text(findings: dict[str, Any]) -> str:
    test = findings["self_test"]
    lines = [f"python       {findings['python']} on {findings['platform']}"]
    lines += [
        f"{name:12} {found or 'not installed'}" for name, found in findings["packages"].items()
    ]
    lines += [f"extension    {name}: {value}" for name, value in findings["extension"].items()]
    lines += [
        f"{name:12} {'available' if there else 'not available'}"
        for name, there in findings["backends"].items()
    ]
    lines += [
        f"MPI          {findings['mpi']}",
        f"CUDA         {findings['cuda_devices']} device(s)",
    ]
    lines += [f"warning      {text}" for text in findings["warnings"]]
    lines.append(
        "self-test    passed: two processes summed their sketches over gloo"
        if test["passed"]
        else f"self-test    FAILED: {test['failure']}"
    )
    return "\n".join(lines)
