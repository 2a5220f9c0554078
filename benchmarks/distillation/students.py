"""Train one student in every way, seed by seed.

Runs of one seed share subset, initialisation and order of the images, so they are compared in pairs.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.distillation.experiments import COMPRESSED, Experiment
from gsdist.models.branches import strip_branches
from gsdist.reducers import DenseConfig, GsSgdConfig, ReducerConfig
from gsdist.training import RunConfig, RunSummary, TrainConfig, Trainer
from gsdist.training.summary import SUMMARY_FILE, read_summaries
from gsdist.workloads import ClassificationConfig, ClassificationWorkload
from gsdist.workloads.distillation import (
    HsakdStudentConfig,
    HsakdStudentWorkload,
    HsakdTeacherConfig,
    HsakdTeacherWorkload,
    KdConfig,
    KdWorkload,
)
from gsdist.workloads.weights import read_weights

__all__ = ["run_all"]

_GS_SGD = GsSgdConfig(compression=11, min_numel=128, momentum="local")
"""A little above the tenfold that is asked for; in so small a network all matrices are small."""


def run_all(experiment: Experiment, folder: Path) -> Iterator[tuple[int, str, RunSummary]]:
    """Train the teacher and, for each seed, all students; yield seed, method and summary.

    Needs a process group. The teacher's summary comes first, with seed -1. Runs that the folder already
    holds are not repeated.
    """
    weights = folder / "teacher.pt"
    kd_weights = folder / "plain-teacher.pt"
    yield -1, "teacher", _train_teacher(experiment, folder, weights)
    torch.save(strip_branches(read_weights(weights)), kd_weights)
    for seed in range(experiment.seeds):
        for method in experiment.methods:
            name, workload = _student(method, experiment, seed, weights, kd_weights)
            train = replace(experiment.recipe, epochs=experiment.epochs, seed=seed)
            reducer = _GS_SGD if method == COMPRESSED else DenseConfig()
            yield seed, method, _train(name, workload, reducer, train, folder / f"{method}-{seed}")


def _student(
    method: str, experiment: Experiment, seed: int, weights: Path, kd_weights: Path
) -> tuple[str, Any]:
    """Return name and workload of a method."""
    data: dict[str, Any] = {
        "model": experiment.student,
        "data": experiment.data,
        "train_per_class": experiment.per_class,
        "subset_seed": seed,
    }
    if method == "baseline":
        return "classification", ClassificationWorkload(ClassificationConfig(**data))
    taught = data | {"teacher": experiment.teacher, "temperature": 3.0}
    if method.startswith("kd"):
        config = KdConfig(
            **taught,
            teacher_weights=kd_weights,
            label_weight=1.0,
            teacher_weight=1.0,
            rotations=method == "kd-rotations",
        )
        return "kd", KdWorkload(config)
    config = HsakdStudentConfig(**taught, teacher_weights=weights)
    return "hsakd-student", HsakdStudentWorkload(config)


def _train_teacher(experiment: Experiment, folder: Path, weights: Path) -> RunSummary:
    config = HsakdTeacherConfig(model=experiment.teacher, data=experiment.data)
    train = replace(experiment.recipe, epochs=experiment.teacher_epochs, save_model=weights)
    workload = HsakdTeacherWorkload(config)
    return _train("hsakd-teacher", workload, DenseConfig(), train, folder / "teacher")


def _train(
    name: str, workload: Any, reducer: ReducerConfig, train: TrainConfig, folder: Path
) -> RunSummary:
    run = RunConfig(
        train=replace(train, run_dir=folder),
        reducer=reducer,
        workload_name=name,
        workload=workload.config,
    )
    if (folder / SUMMARY_FILE).exists():
        (done,) = read_summaries(folder)
        if done.config_hash == run.fingerprint():
            return done
    return Trainer(run, workload).run()
