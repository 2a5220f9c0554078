"""Checkpoints: each rank gets its own back, half ones are passed over, a killed run goes on bit for bit."""

import json
import os
import pickle
import random
import shutil
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from gsdist.errors import ConfigError
from gsdist.reducers import GsSgdConfig, GsSgdPaperConfig, ReducerConfig
from gsdist.training import RunConfig, TrainConfig, Trainer, detect_launch, process_group
from gsdist.training.checkpoint import CheckpointStore
from gsdist.training.checkpoint_part import digest
from gsdist.training.metrics import read_records
from gsdist.workloads import ClassificationConfig, ClassificationWorkload
from tests.distributed.harness import checkpoint_error, run_ranks


def store_at(
    folder: str | Path, *, config: dict[str, Any] | None = None, keep: int = 2, **options: Any
) -> CheckpointStore:
    config = config or {"seed": 0}
    return CheckpointStore(
        Path(folder),
        keep=keep,
        config=config,
        config_hash=json.dumps(config, sort_keys=True),
        **options,
    )


def replicated_state() -> dict[str, Any]:
    return {"model": {"weight": torch.arange(6.0).view(2, 3)}, "position": {"step": 4}}


def own_state(rank: int) -> dict[str, Any]:
    """Build state that differs from rank to rank in values, shapes and structure."""
    return {
        "residual": {
            "a.weight": torch.full((2, rank + 1), float(rank)),
            "scalar": torch.tensor(rank),
        },
        "half": torch.tensor([0.5, rank], dtype=torch.bfloat16).t(),
        "strided": torch.arange(12 + rank).view(1, -1)[:, ::2],
        "none": torch.zeros(0, 3),
        "list": [torch.tensor([1.0 + rank]), {"deep": torch.tensor(True)}],
        "values": {0: (1, None, "text"), "float": 0.1 * rank, "big": 2**70 + rank},
    }


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, Tensor):
        assert found.dtype == expected.dtype and torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, list | tuple):
        assert type(found) is type(expected) and len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


def _save_and_load(rank: int, world_size: int, folder: str) -> dict[str, str]:
    store = store_at(folder)
    assert store.newest() is None
    store.save(4, replicated=replicated_state(), own=own_state(rank))
    found = store.newest()
    assert found is not None and (found.step, found.world_size) == (4, world_size)
    loaded = store.load(found)
    assert_same(loaded.replicated, replicated_state())
    assert_same(loaded.own, own_state(rank))
    dist.barrier()

    blocked = Path(folder) / "file"
    if rank == 0:
        blocked.write_text("in the way")
    messages = {
        "other settings": checkpoint_error(store_at(folder, config={"seed": 1}).newest),
        "unwritable": checkpoint_error(lambda: store_at(blocked).save(1, replicated={}, own={})),
    }
    store.save(5, replicated={}, own={})
    hostile = store.newest()
    assert hostile is not None
    dist.barrier()
    if rank == 0:
        metadata = hostile.path / "replicated" / ".metadata"
        metadata.write_bytes(pickle.dumps(_Hostile()))
        # as whoever can write there can write the manifest
        manifest = json.loads((hostile.path / "manifest.json").read_text())
        manifest["files"]["replicated/.metadata"] = [metadata.stat().st_size, digest(metadata)]
        (hostile.path / "manifest.json").write_text(json.dumps(manifest))
    dist.barrier()
    hostile = store.newest()
    assert hostile is not None
    messages["hostile"] = checkpoint_error(lambda: store.load(hostile))
    return messages


class _Hostile:
    """Run a command when unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("echo unpickled > hostile-was-here",)


def test_each_rank_gets_its_own_state_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for messages in run_ranks(_save_and_load, 2, str(tmp_path / "store")):
        assert "seed was 0 and is now 1" in messages["other settings"]
        assert "another checkpoint_dir" in messages["other settings"]
        assert "file" in messages["unwritable"]
        assert "posix.system, which does not belong there" in messages["hostile"]
    assert not (tmp_path / "hostile-was-here").exists()
    with process_group(detect_launch({}), timedelta(seconds=10)):
        message = checkpoint_error(store_at(tmp_path / "store", residual="refuse").newest)
    assert "written by 2 worker(s)" in message and "this run has 1" in message


# ---- what a crash leaves behind, on a group of one process -----------------------------------------------


@pytest.fixture
def group_of_one() -> Any:
    with process_group(detect_launch({}), timedelta(seconds=10)):
        yield


def save_steps(folder: Path, *steps: int, keep: int = 9) -> CheckpointStore:
    store = store_at(folder, keep=keep)
    for step in steps:
        store.save(step, replicated={"step": step}, own=own_state(0))
    return store


def found_step(store: CheckpointStore) -> int | None:
    found = store.newest()
    if found is None:
        return None
    assert store.load(found).replicated["step"] == found.step
    return found.step


def _cut_data(checkpoint: Path) -> None:
    data = next(checkpoint.glob("*/*.distcp"))
    data.write_bytes(data.read_bytes()[:-10])


@pytest.mark.parametrize(
    "damage",
    [
        lambda checkpoint: (checkpoint / "manifest.json").unlink(),
        lambda checkpoint: (checkpoint / "manifest.json").write_text('{"format": 1, "st'),
        lambda checkpoint: (checkpoint / "replicated" / ".metadata").unlink(),
        lambda checkpoint: next(checkpoint.glob("*/*.distcp")).unlink(),
        _cut_data,
        lambda checkpoint: [file.unlink() for file in checkpoint.rglob("*") if file.is_file()],
    ],
    ids=["no manifest", "half a manifest", "no metadata", "no data", "half the data", "empty"],
)
@pytest.mark.usefixtures("group_of_one")
def test_half_written_checkpoints_are_passed_over(damage: Any, tmp_path: Path) -> None:
    store = save_steps(tmp_path, 5, 10)
    assert found_step(store) == 10
    damage(tmp_path / "step-000000010")
    assert found_step(store) == 5
    store.save(10, replicated={"step": 10}, own={})
    assert found_step(store) == 10


@pytest.mark.usefixtures("group_of_one")
def test_a_save_cut_off_before_its_end_leaves_no_checkpoint(tmp_path: Path) -> None:
    store = save_steps(tmp_path, 5, 10)
    shutil.move(tmp_path / "step-000000010", tmp_path / ".partial-step-000000010")
    assert found_step(store) == 5
    store.save(10, replicated={"step": 10}, own={})
    assert found_step(store) == 10
    assert not list(tmp_path.glob(".partial*"))


@pytest.mark.usefixtures("group_of_one")
def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2, 3, 100, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000003", "step-000000100"]


@pytest.mark.usefixtures("group_of_one")
def test_a_fresh_run_does_not_mix_with_old_checkpoints(tmp_path: Path) -> None:
    save_steps(tmp_path / "checkpoints", 3)
    trainer = make_trainer(tmp_path, ClassificationWorkload, steps=4)
    with pytest.raises(ConfigError, match="--resume"):
        trainer.run()


# ---- kill and resume --------------------------------------------------------------------------------------

STEPS, EVERY, KILLED_AT = 16, 6, 10


class NoisyDigits(ClassificationWorkload):
    """Draw from every source of randomness a run may use, in a net with dropout."""

    def build_model(self) -> nn.Module:
        return nn.Sequential(super().build_model(), nn.Dropout(0.1))

    def prepare_batch(
        self, batch: Any, *, training: bool, generator: torch.Generator | None = None
    ) -> Any:
        images, labels = super().prepare_batch(batch, training=training, generator=generator)
        if training:
            drawn = torch.rand((), generator=generator) + random.random() + np.random.rand()
            images = images + 0.05 * drawn
        return images, labels


class KilledDigits(NoisyDigits):
    """Die without warning in the middle of an epoch, some steps after a checkpoint."""

    def after_step(self, model: nn.Module, step: int) -> None:
        if step == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)


REDUCERS: dict[str, ReducerConfig] = {
    "gs-sgd": GsSgdConfig(compression=20.0, warmup_steps=2, refresh_interval=2),
    "gs-sgd-paper": GsSgdPaperConfig(
        density=0.05, warmup_steps=2, momentum="local", preselect_factor=0.0
    ),
}


def make_trainer(
    folder: Path,
    workload: type[ClassificationWorkload],
    *,
    method: str = "gs-sgd",
    steps: int = STEPS,
    resume: bool = False,
) -> Trainer:
    settings = ClassificationConfig(data="digits", model="resnet8", train_subset=130)
    train = TrainConfig(
        steps=steps,
        batch_size=8,
        learning_rate=0.05,
        nesterov=True,
        lr_warmup_steps=3,
        deterministic=True,
        log_every=1,
        checkpoint_every=EVERY,
        resume=resume,
        run_dir=folder,
        progress=False,
    )
    run = RunConfig(
        train=train, reducer=REDUCERS[method], workload_name="digits", workload=settings
    )
    return Trainer(run, workload(settings))


def _train(
    rank: int,
    world_size: int,
    folder: str,
    workload: type[ClassificationWorkload],
    method: str,
    resume: bool,
) -> dict[str, Any]:
    trainer = make_trainer(Path(folder), workload, method=method, resume=resume)
    trainer.run()
    return {"model": trainer._learner.replicated_state(), "own": trainer._learner.own_state()}


def _train_then_die(
    rank: int, world_size: int, whole: str, killed: str, method: str
) -> dict[str, Any]:
    outcome = _train(rank, world_size, whole, NoisyDigits, method, False)
    torch.save(outcome, f"{whole}/rank{rank}.pt")
    dist.barrier()
    return _train(rank, world_size, killed, KilledDigits, method, False)


def records_of(folder: Path) -> list[dict[str, Any]]:
    records = list(read_records(folder / "metrics.jsonl"))
    for record in records:
        for name in [name for name in record if name.startswith(("seconds", "wait_ms"))]:
            del record[name]
    return records


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("world_size", "method"), [(2, "gs-sgd"), (3, "gs-sgd"), (3, "gs-sgd-paper")]
)
def test_a_killed_run_goes_on_with_the_same_bits(
    world_size: int, method: str, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with pytest.raises(pytest.fail.Exception, match="died"):
        run_ranks(_train_then_die, world_size, str(whole), str(killed), method, timeout=90)
    assert not (killed / "summary.json").exists()
    assert max(record["step"] for record in records_of(killed)) < STEPS

    resumed = run_ranks(_train, world_size, str(killed), NoisyDigits, method, True, timeout=90)
    assert records_of(killed) == records_of(whole)
    residuals = []
    for rank, outcome in enumerate(resumed):
        expected = torch.load(whole / f"rank{rank}.pt", weights_only=False)
        for state in (outcome["own"], expected["own"]):
            state["statistics"].pop("seconds")
        assert_same(outcome, expected)
        residuals.append(torch.cat([r.reshape(-1) for r in outcome["own"]["residual"].values()]))
    assert not torch.equal(residuals[0], residuals[1]), "residuals are each rank's own"
    assert json.loads((killed / "summary.json").read_text())["steps"] == STEPS
