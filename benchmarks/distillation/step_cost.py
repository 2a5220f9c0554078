"""Compare the time of an HSAKD student's step with that of the same passes written down by hand.

By hand means plain torch: one pass of student and teacher over the four rotations, the loss in one
expression, one backward pass, one optimizer step. The trainer's step has DDP, the exchange and the
workload in between. The two take turns, so that both see the same machine.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.distillation.experiments import CIFAR10
from gsdist.models.branches import BranchedNetwork
from gsdist.reducers import DenseConfig
from gsdist.training import TrainConfig
from gsdist.training.learner import Learner
from gsdist.training.stopwatch import Stopwatch
from gsdist.workloads.distillation import (
    HsakdStudentConfig,
    HsakdStudentWorkload,
    HsakdTeacherConfig,
    HsakdTeacherWorkload,
)

__all__ = ["BOUND", "measure"]

BOUND = 1.15
_BATCH = 16
_TEMPERATURE = 3.0


def measure(rounds: int, folder: Path) -> dict[str, Any]:
    """Time both steps on CIFAR-10's networks, in turns; needs a process group and CIFAR-10."""
    weights = folder / "teacher.pt"
    teacher = HsakdTeacherConfig(model=CIFAR10.teacher, data="cifar10")
    torch.save(HsakdTeacherWorkload(teacher).build_model().state_dict(), weights)
    workload = HsakdStudentWorkload(
        HsakdStudentConfig(
            model=CIFAR10.student,
            teacher=CIFAR10.teacher,
            teacher_weights=weights,
            data="cifar10",
            temperature=_TEMPERATURE,
        )
    )
    batch = _batch(workload)
    contenders = {"trainer": _trainer_step(workload, batch), "by hand": _own_step(workload, batch)}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 2):
        names = list(contenders) if number % 2 else list(reversed(contenders))
        for name in names:
            start = time.perf_counter()
            contenders[name]()
            if number >= 2:
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "networks": f"{CIFAR10.teacher}:{CIFAR10.student}",
        "batch_size": _BATCH,
        "rounds": rounds,
        "median_seconds": medians,
        "ratio": medians["trainer"] / medians["by hand"],
        "bound": BOUND,
    }


def _batch(workload: HsakdStudentWorkload) -> tuple[Tensor, Tensor]:
    data = workload.training_dataset()
    items = [data[index] for index in range(_BATCH)]
    images = torch.stack([image for image, _ in items])
    labels = torch.tensor([label for _, label in items])
    return workload.prepare_batch((images, labels), training=True)


def _trainer_step(workload: HsakdStudentWorkload, batch: Any) -> Callable[[], object]:
    config = TrainConfig(learning_rate=1e-3, schedule="constant")
    learner = Learner(workload, config, DenseConfig(), total_steps=10**6, stopwatch=Stopwatch())
    return lambda: learner.step([batch], 1)


def _own_step(workload: HsakdStudentWorkload, batch: Any) -> Callable[[], object]:
    images, labels = batch
    student, teacher = workload.build_model(), workload.teacher
    assert isinstance(teacher, BranchedNetwork)
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)

    def distance(own: Tensor, target: Tensor) -> Tensor:
        answer, wanted = (logits.div(_TEMPERATURE).log_softmax(1) for logits in (own, target))
        return F.kl_div(answer, wanted, reduction="batchmean", log_target=True) * _TEMPERATURE**2

    def step() -> None:
        views = torch.stack([images.rot90(k, (2, 3)) for k in range(4)], dim=1).flatten(0, 1)
        with torch.no_grad():
            target, target_branches = teacher(views)
        answer, branches = student(views)
        loss = F.cross_entropy(answer[::4], labels) + distance(answer, target)
        for own, wanted in zip(branches, target_branches, strict=True):
            loss = loss + distance(own, wanted)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
