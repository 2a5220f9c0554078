"""Run one function on several real gloo processes, with a hard time limit and per-rank results."""

import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from gsdist.errors import CheckpointError


def checkpoint_error(action: Callable[[], Any]) -> str:
    """Return the message of the `CheckpointError` that an action raises, or "no error"."""
    try:
        action()
    except CheckpointError as error:
        return str(error)
    return "no error"


def run_ranks(
    function: Callable[..., Any],
    world_size: int,
    *arguments: Any,
    timeout: float = 60,
    method: str = "spawn",
) -> list[Any]:
    """Call `function(rank, world_size, *arguments)` on every rank; return the results in rank order.

    The function must be importable (module level) and return something picklable. A rank that raises
    fails the test with its traceback; a rank that outlives `timeout` seconds is killed and named.
    `method` is how multiprocessing starts them.
    """
    context: Any = multiprocessing.get_context(method)
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(world_size)]
        processes = [
            context.Process(
                target=_rank_main,
                args=(
                    function,
                    rank,
                    world_size,
                    str(Path(folder) / "store"),
                    pipes[rank][1],
                    arguments,
                ),
                daemon=True,
            )
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        for _, sender in pipes:
            sender.close()
        try:
            outcomes = _collect([receiver for receiver, _ in pipes], time.monotonic() + timeout)
        finally:
            for process in processes:
                if process.is_alive():
                    process.join(5)
                if process.is_alive():
                    process.kill()
                process.join()
    failures = [f"rank {rank}: {text}" for rank, (ok, text) in enumerate(outcomes) if not ok]
    if failures:
        pytest.fail("\n".join(failures), pytrace=False)
    return [value for _, value in outcomes]


def _collect(receivers: list[Any], deadline: float) -> list[tuple[bool, Any]]:
    outcomes: list[tuple[bool, Any]] = []
    for receiver in receivers:
        if receiver.poll(max(0.0, deadline - time.monotonic())):
            try:
                # bytes, not tensors: torch would send handles to memory that dies with its process
                outcomes.append(torch.load(BytesIO(receiver.recv_bytes()), weights_only=False))
            except EOFError:
                outcomes.append((False, "died without a word"))
        else:
            outcomes.append((False, "still running at the time limit"))
    return outcomes


def _rank_main(
    function: Callable[..., Any],
    rank: int,
    world_size: int,
    store_path: str,
    sender: Any,
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(store_path, world_size)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=30)
    )
    try:
        outcome = (True, function(rank, world_size, *arguments))
    except BaseException:
        outcome = (False, traceback.format_exc())
    try:
        encoded = BytesIO()
        torch.save(outcome, encoded)
        sender.send_bytes(encoded.getvalue())
    finally:
        sender.close()
        dist.destroy_process_group()
