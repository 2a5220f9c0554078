"""Describe the comparisons of distillation methods: data, networks, recipe, and what is expected.

In both the teacher learns from all training images and the students from some of each class, the same
for all students of a seed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.distillation.result import Result
from gsdist.training import TrainConfig

__all__ = ["CIFAR10", "DIGITS", "Experiment"]

COMPRESSED = "hsakd with gs-sgd"
"""The method whose gradients are compressed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """Say who learns from whom, what, and for how long."""

    data: str
    teacher: str
    """Network of the teacher."""
    student: str
    """Network of all students."""
    methods: tuple[str, ...]
    per_class: int
    """Images of each class that the students learn from."""
    epochs: int
    """Of the students."""
    teacher_epochs: int
    seeds: int
    recipe: TrainConfig

    def setting(self) -> dict[str, Any]:
        """Return what sizes the experiment, for a report."""
        names = ("data", "teacher", "student", "per_class", "epochs", "teacher_epochs", "seeds")
        return {name: getattr(self, name) for name in names}

    def check(self, results: Mapping[str, Result]) -> dict[str, bool]:
        """Say which expectations about these results hold."""
        return _check_digits(results) if self.data == "digits" else _check_order(results)


_RECIPE = TrainConfig(
    batch_size=32,
    learning_rate=0.05,
    schedule="multistep",
    milestones=(0.625, 0.75, 0.875),
    nesterov=True,
    weight_decay=5e-4,
    evaluate_every=10**9,
    progress=False,
)

DIGITS = Experiment(
    data="digits",
    teacher="resnet8",
    student="resnet8-narrow",
    methods=("baseline", "kd", "kd-rotations", "hsakd", COMPRESSED),
    per_class=20,
    epochs=60,
    teacher_epochs=15,
    seeds=5,
    recipe=_RECIPE,
)
"""Few-shot digits. The row "kd-rotations" distils on rotated images without branches: on images so small
it gets most of HSAKD's gain, so the order says nothing about the branches."""

CIFAR10 = Experiment(
    data="cifar10",
    teacher="resnet14",
    student="resnet8",
    methods=("baseline", "kd", "hsakd"),
    per_class=1000,
    epochs=10,
    teacher_epochs=2,
    seeds=1,
    recipe=replace(_RECIPE, batch_size=64, amp="bf16", checkpoint_every=100, resume=True),
)
"""A fifth of CIFAR-10 for the students, and a schedule that one core can follow."""


def _check_digits(results: Mapping[str, Result]) -> dict[str, bool]:
    means = {name: result.mean for name, result in results.items()}
    hsakd = results["hsakd"]
    return {
        "hsakd is at least 3 points above baseline": means["hsakd"] - means["baseline"] >= 3,
        "hsakd beats baseline in four seeds of five": hsakd.wins(results["baseline"])
        >= 0.8 * len(hsakd.accuracies),
        "hsakd is at least as good as kd": means["hsakd"] >= means["kd"],
        "kd is at most 1 point below baseline": means["kd"] >= means["baseline"] - 1,
        "gs-sgd sends at most a tenth": min(results[COMPRESSED].compression) >= 10,
        "gs-sgd is within 1 point of dense": means[COMPRESSED] >= means["hsakd"] - 1,
    }


def _check_order(results: Mapping[str, Result]) -> dict[str, bool]:
    return {
        "hsakd is above kd": results["hsakd"].mean > results["kd"].mean,
        "kd is above baseline": results["kd"].mean > results["baseline"].mean,
    }
