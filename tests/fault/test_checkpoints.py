"""Checkpoints that are damaged, cannot be written, or go on with another number of ranks."""

import json
import math
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gsdist
from gsdist.reducers import GsSgdConfig, GsSgdPaperConfig, ReducerConfig
from gsdist.training.checkpoint import CheckpointStore
from tests.distributed.harness import checkpoint_error
from tests.fault.job import run_forked

pytestmark = pytest.mark.timeout(400)


def store_at(folder: str, **options: Any) -> CheckpointStore:
    return CheckpointStore(Path(folder), keep=2, config={}, config_hash="", **options)


# ---- damage ----------------------------------------------------------------------------------------------


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(bytes(data))


def damaged(rank: int, world_size: int, folder: str) -> dict[str, str]:
    store = store_at(folder)
    store.save(
        3, replicated={"weight": torch.ones(500)}, own={"residual": torch.full((500,), rank + 0.5)}
    )
    found = store.newest()
    assert found is not None
    dist.barrier()
    if rank == 0:
        flip_a_bit(next((found.path / "rank-00001").glob("*.distcp")))
    dist.barrier()
    messages = {"residual": checkpoint_error(lambda: store.load(found))}
    loaded = store_at(folder, residual="reset").load(found)
    assert loaded.own is None and torch.equal(loaded.replicated["weight"], torch.ones(500))
    dist.barrier()
    if rank == 0:
        flip_a_bit(next((found.path / "replicated").glob("*.distcp")))
    dist.barrier()
    messages["model"] = checkpoint_error(lambda: store_at(folder, residual="reset").load(found))
    return messages


def test_a_flipped_bit_is_named_by_file_and_rank_on_every_rank(tmp_path: Path) -> None:
    for messages in run_forked(damaged, 2, str(tmp_path)):
        assert "step-000000003/rank-00001/" in messages["residual"]
        assert "written by rank 1, is damaged" in messages["residual"]
        assert 'set residual to "reset"' in messages["residual"]
        assert "step-000000003/replicated/" in messages["model"]


# ---- disks -----------------------------------------------------------------------------------------------


def out_of_space(rank: int, world_size: int, folder: str) -> list[str]:
    """Rank 1 can write no file beyond 64 KiB from the second checkpoint on, as on a full disk."""
    messages = []
    for asynchronous in (False, True):
        store = store_at(f"{folder}/{asynchronous}", asynchronous=asynchronous)
        big = {"residual": torch.ones(50_000)}
        store.save(1, replicated={}, own=big)
        store.finish()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
        messages.append(
            checkpoint_error(lambda store=store, big=big: store.save(2, replicated={}, own=big))
        )
        messages.append(checkpoint_error(store.finish))
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        found = store.newest()
        assert found is not None and found.step == 1, "the old one is gone"
        store.save(3, replicated={}, own=big)
        store.finish()
        found = store.newest()
        assert found is not None and found.step == 3
        dist.barrier()
        assert not list(Path(f"{folder}/{asynchronous}").glob(".partial*"))
        dist.barrier()
    return messages


def test_a_full_disk_shows_on_every_rank_and_costs_no_older_checkpoint(tmp_path: Path) -> None:
    for rank, found in enumerate(run_forked(out_of_space, 2, str(tmp_path))):
        at_once, nothing_left, beside, at_the_end = found
        assert nothing_left == beside == "no error", "an asynchronous save must not stop training"
        for message in (at_once, at_the_end):
            assert "cannot write checkpoint" in message and "rank-00001" in message, (rank, message)


# ---- other world sizes -----------------------------------------------------------------------------------

CONFIGS: dict[str, ReducerConfig] = {
    "gs-sgd": GsSgdConfig(
        compression=4.0, warmup_steps=1, refresh_interval=3, min_numel=16, momentum="local"
    ),
    "gs-sgd-paper": GsSgdPaperConfig(density=0.05, warmup_steps=1, min_numel=16, momentum="local"),
}


def attached(config: ReducerConfig) -> tuple[DistributedDataParallel, Any, Any]:
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 4)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, optimizer, gsdist.attach(model, config, optimizer=optimizer)


def kept_back(state: Any) -> dict[str, Tensor]:
    """Return all that a rank has kept: its residual without what it still owes, and its momentum."""
    layout = state._reducer._layout
    residual = layout.unflatten(compressed=state._reducer._kept(), dense=None)
    momentum = layout.unflatten(
        compressed=state._reducer._momentum, dense=torch.zeros(layout.dense_size)
    )
    names = [segment.name for segment in layout.compressed]
    return {
        **{f"residual {name}": residual[name] for name in names},
        **{f"momentum {name}": momentum[name] for name in names},
    }


def save_or_take_over(
    rank: int, world_size: int, folder: str, name: str, step: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Go on from the checkpoint there, train a little, save; return what is kept at both ends."""
    store = store_at(folder)
    model, optimizer, state = attached(CONFIGS[name])
    found = store.newest()
    if found is not None:
        loaded = store.load(found)
        assert loaded.own is None and loaded.first is not None
        state.load_state_dict(state.inherited_state(loaded.first, loaded.inherited))
    at_start = kept_back(state)
    generator = torch.Generator().manual_seed(100 * step + rank)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 30, generator=generator)).square().mean().backward()
        optimizer.step()
    store.save(step, replicated={}, own=state.state_dict())
    return at_start, kept_back(state)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_what_is_kept_back_survives_changes_of_the_world_size(name: str, tmp_path: Path) -> None:
    sizes = (4, 3, 5)
    before: list[dict[str, Tensor]] = []
    for step, size in enumerate(sizes, start=1):
        found = run_forked(save_or_take_over, size, str(tmp_path), name, step)
        after = [at_start for at_start, _ in found]
        for key in before[0] if before else ():
            old = torch.stack([one[key] for one in before]).double()
            new = torch.stack([one[key] for one in after]).double()
            error = (new.sum(0) - old.sum(0)).norm() / old.norm()
            assert error < 1e-6, (key, size, float(error))
            assert old.norm() > 0 and math.isfinite(float(old.norm()))
        before = [at_end for _, at_end in found]


def refused(rank: int, world_size: int, folder: str) -> str:
    return checkpoint_error(store_at(folder, residual="refuse").newest)


def test_another_world_size_can_be_refused(tmp_path: Path) -> None:
    run_forked(save_empty, 3, str(tmp_path))
    assert (
        json.loads((tmp_path / "step-000000001" / "manifest.json").read_text())["world_size"] == 3
    )
    for message in run_forked(refused, 2, str(tmp_path)):
        assert "written by 3 worker(s) and this run has 2" in message


def save_empty(rank: int, world_size: int, folder: str) -> None:
    store_at(folder).save(1, replicated={}, own={})
