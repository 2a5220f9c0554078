"""Distillation on two ranks: gradients of the whole batch, equal ranks, and the course of one process."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gsdist.reducers import DenseConfig, GsSgdConfig
from gsdist.training import RunConfig, TrainConfig, Trainer
from gsdist.training.sampling import TrainingBatches
from gsdist.workloads import Workload
from gsdist.workloads.distillation import (
    DetectionTransferConfig,
    DetectionTransferWorkload,
    HsakdStudentConfig,
    HsakdStudentWorkload,
    HsakdTeacherConfig,
    HsakdTeacherWorkload,
    HssakdOnlineConfig,
    HssakdOnlineWorkload,
    MclConfig,
    MclMemoryBankConfig,
    MclMemoryBankWorkload,
    MclMocoConfig,
    MclMocoWorkload,
    MclWorkload,
)
from gsdist.workloads.distillation.contrast import ContrastRows, contrast_terms
from gsdist.workloads.distillation.gather import first_row, gather_rows
from tests.distributed.harness import run_ranks

WORLD_SIZE = 2
SMALL: dict[str, Any] = {
    "model": "resnet8-narrow",
    "data": "digits",
    "norm": "group",
    "augment": False,
}
TRAIN = TrainConfig(
    steps=4,
    batch_size=8,
    learning_rate=0.02,
    nesterov=True,
    weight_decay=5e-4,
    schedule="constant",
    evaluate_every=4,
    log_every=1,
    progress=False,
)


def make_workload(name: str, teacher: Path) -> tuple[Any, Workload]:
    """Build a workload and its settings by name."""
    config: Any
    if name == "hsakd-teacher":
        config = HsakdTeacherConfig(**SMALL)
        return config, HsakdTeacherWorkload(config)
    if name == "hsakd-student":
        config = HsakdStudentConfig(teacher="resnet8-narrow", teacher_weights=teacher, **SMALL)
        return config, HsakdStudentWorkload(config)
    if name == "hssakd-online":
        config = HssakdOnlineConfig(**SMALL)
        return config, HssakdOnlineWorkload(config)
    if name == "mcl-memory-bank":
        config = MclMemoryBankConfig(negatives=16, **SMALL)
        return config, MclMemoryBankWorkload(config)
    if name == "mcl-moco":
        config = MclMocoConfig(queue_length=32, **SMALL)
        return config, MclMocoWorkload(config)
    config = MclConfig(**SMALL)
    return config, MclWorkload(config)


AS_ONE_PROCESS = ("hsakd-teacher", "hsakd-student", "hssakd-online", "mcl", "mcl-moco")


def write_teacher(path: Path) -> None:
    """Write the weights of a small teacher with branches."""
    torch.manual_seed(3)
    torch.save(HsakdTeacherWorkload(HsakdTeacherConfig(**SMALL)).build_model().state_dict(), path)


def plain_loop(name: str, teacher: Path) -> dict[str, Tensor]:
    """Train in one process on the batches of all ranks with nothing but torch."""
    _, workload = make_workload(name, teacher)
    torch.manual_seed(TRAIN.seed)
    model = workload.build_model()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    data = workload.training_dataset()
    ranks = []
    for rank in range(WORLD_SIZE):
        dealing = {"batch_size": 8, "rank": rank, "world_size": WORLD_SIZE, "seed": TRAIN.seed}
        ranks.append(workload.training_batches(**dealing) or TrainingBatches(len(data), **dealing))
    batches = zip(*ranks, strict=True)
    for step in range(1, 5):
        items = [data[index] for batch in next(batches) for index in batch]
        images, labels = (
            torch.stack([image for image, _ in items]),
            torch.tensor([y for _, y in items]),
        )
        prepared = workload.prepare_batch((images, labels), training=True)
        workload.loss(model, prepared).total.backward()
        optimizer.step()
        optimizer.zero_grad()
        workload.after_step(model, step)
    return model.state_dict()


def _train(rank: int, world_size: int, folder: str) -> dict[str, dict[str, Tensor]]:
    states = {}
    for name in (*AS_ONE_PROCESS, "mcl-memory-bank"):
        config, workload = make_workload(name, Path(folder) / "teacher.pt")
        train = replace(
            TRAIN, run_dir=Path(folder) / name, save_model=Path(folder) / name / "model.pt"
        )
        run = RunConfig(train=train, reducer=DenseConfig(), workload_name=name, workload=config)
        trainer = Trainer(run, workload)
        trainer.run()
        states[name] = {k: v.clone() for k, v in trainer._learner.model.state_dict().items()}
    return states


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs")
    write_teacher(path / "teacher.pt")
    return path


@pytest.fixture(scope="module")
def trained(folder: Path) -> list[dict[str, dict[str, Tensor]]]:
    return run_ranks(_train, WORLD_SIZE, str(folder), timeout=110)


@pytest.mark.parametrize("name", AS_ONE_PROCESS)
def test_two_ranks_take_the_course_of_one_process(
    name: str, trained: list[dict[str, dict[str, Tensor]]], folder: Path
) -> None:
    first, second = (states[name] for states in trained)
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    expected = plain_loop(name, folder / "teacher.pt")
    torch.testing.assert_close(first, expected, rtol=1e-3, atol=1e-5)
    saved = torch.load(folder / name / "model.pt", weights_only=True)
    assert all(torch.equal(value, saved[key]) for key, value in first.items())


def test_banks_are_equal_on_all_ranks_and_moved_where_images_were_seen(
    trained: list[dict[str, dict[str, Tensor]]],
) -> None:
    first, second = (states["mcl-memory-bank"] for states in trained)
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    for peer in range(2):
        # They start far from norm 1. Four steps of 8 images on each of two ranks, none seen twice.
        norms = first[f"banks.{peer}.slots"].norm(dim=1)
        assert ((norms - 1).abs() < 1e-5).sum() == 4 * 8 * WORLD_SIZE


def _labels() -> Tensor:
    return torch.tensor([0, 0, 1, 1, 0, 2, 2, 1])


def _terms(weights: list[Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
    own = [F.normalize(inputs @ weight, dim=1) for weight in weights]
    rows = ContrastRows.of_labels(labels, gather_rows(labels), first_row(labels))
    terms = contrast_terms(
        own,
        [gather_rows(embedding) for embedding in own],
        rows,
        contrast_temperature=0.5,
        temperature=3.0,
    )
    return sum(terms.values(), torch.zeros(()))


def _contrast_a_shard(rank: int, world_size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    inputs = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    weights = [weight.clone().requires_grad_() for weight in start]
    size = 8 // world_size
    shard = slice(rank * size, (rank + 1) * size)
    loss = _terms(weights, inputs[shard], _labels()[shard])
    loss.backward()  # type: ignore[no-untyped-call]
    same = F.normalize(torch.ones(size, 3, dtype=torch.float64), dim=1)
    labels = torch.zeros(size, dtype=torch.int64)
    rows = ContrastRows.of_labels(labels, gather_rows(labels), first_row(labels))
    everyone = gather_rows(same)
    guess = contrast_terms(
        [same, same], [everyone] * 2, rows, contrast_temperature=1.0, temperature=3.0
    )
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    return [loss.detach(), *gradients, guess["vanilla"] / 2]


def test_contrast_of_shards_averages_to_that_of_the_batch() -> None:
    whole = _contrast_a_shard(0, 1)
    shards = run_ranks(_contrast_a_shard, WORLD_SIZE)
    for expected, *parts in zip(whole, *shards, strict=True):
        torch.testing.assert_close(sum(parts) / WORLD_SIZE, expected, rtol=1e-12, atol=1e-12)
    # Contrasts within a rank alone would give ln(B/P - 1).
    assert shards[0][-1].item() == pytest.approx(math.log(8 - 1))


class _HalfBlind(torch.nn.Module):
    """Find the one object of an image, unless the image is dark."""

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        found = {"boxes": BOX, "labels": torch.tensor([3]), "scores": torch.ones(1)}
        return [
            found if image.max() > 0 else {k: v[:0] for k, v in found.items()} for image in images
        ]


BOX = torch.tensor([[4.0, 4.0, 20.0, 24.0]])


def _detect(rank: int, world_size: int, weights: str) -> list[tuple[float, float]]:
    config = DetectionTransferConfig(model="resnet8-narrow", weights=Path(weights))
    bright = [True, False, True, True, False, True]
    there = {"boxes": BOX, "labels": torch.tensor([3]), "difficult": torch.tensor([False])}
    images = [torch.full((3, 32, 32), float(value)) for value in bright]
    batches = [([image], [there]) for image in images[rank::world_size]]
    found = DetectionTransferWorkload(config).evaluate(_HalfBlind(), batches)
    return [found["map_50"], found["map"]]


@pytest.mark.slow
def test_detections_of_all_ranks_are_measured_together(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "weights.pt")
    whole = _detect(0, 1, str(tmp_path / "weights.pt"))
    # Four of six objects: COCO counts the 67 of 101 levels of recall up to two thirds.
    assert whole == [(pytest.approx(67 / 101), 1.0)] * 2
    shares = run_ranks(_detect, WORLD_SIZE, str(tmp_path / "weights.pt"), timeout=110)
    sums = torch.tensor(shares, dtype=torch.float64).sum(0)
    torch.testing.assert_close(sums, torch.tensor(whole, dtype=torch.float64))


def _train_with_gs_sgd(rank: int, world_size: int, folder: str) -> dict[str, list[float]]:
    curves = {}
    for name in ("hsakd-student", "mcl"):
        config, workload = make_workload(name, Path(folder) / "teacher.pt")
        train = replace(TRAIN, steps=24, run_dir=Path(folder) / "gs" / name)
        # So small a network has small matrices only.
        reducer = GsSgdConfig(compression=11, min_numel=128)
        run = RunConfig(train=train, reducer=reducer, workload_name=name, workload=config)
        summary = Trainer(run, workload).run()
        curves[name] = summary.curves["train"]["loss"] if rank == 0 else []
    return curves


@pytest.mark.slow
def test_loss_falls_with_compressed_gradients(folder: Path) -> None:
    for curve in run_ranks(_train_with_gs_sgd, WORLD_SIZE, str(folder), timeout=300)[0].values():
        assert sum(curve[-4:]) < sum(curve[:4])
