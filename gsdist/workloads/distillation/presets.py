"""Give the published settings of teacher and student pairs on CIFAR-100.

Source: Yang et al., Hierarchical Self-supervised Augmented Knowledge Distillation, 2021, section 4.1;
the same recipe as in Tian et al., Contrastive Representation Distillation, 2020.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from gsdist.errors import ConfigError

__all__ = ["PAIRS", "Pair", "preset"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Name two networks and the student's learning rate."""

    teacher: str
    student: str
    learning_rate: float = 0.05


PAIRS = MappingProxyType(
    {
        "wrn40-2:wrn16-2": Pair(teacher="wrn-40-2", student="wrn-16-2"),
        "wrn40-2:wrn40-1": Pair(teacher="wrn-40-2", student="wrn-40-1"),
        "resnet56:resnet20": Pair(teacher="resnet56", student="resnet20"),
        "resnet32x4:resnet8x4": Pair(teacher="resnet32x4", student="resnet8x4"),
        "vgg13:mobilenetv2": Pair(
            teacher="vgg13-cifar", student="mobilenetv2-half", learning_rate=0.01
        ),
        "resnet50:mobilenetv2": Pair(
            teacher="resnet50-cifar", student="mobilenetv2-half", learning_rate=0.01
        ),
        "wrn40-2:shufflenetv1": Pair(
            teacher="wrn-40-2", student="shufflenetv1", learning_rate=0.01
        ),
        "resnet32x4:shufflenetv2": Pair(
            teacher="resnet32x4", student="shufflenetv2", learning_rate=0.01
        ),
    }
)
"""Published pairs by name, TEACHER:STUDENT."""
_RECIPE = MappingProxyType(
    {
        "epochs": 240,
        "batch_size": 64,
        "schedule": "multistep",
        "milestones": (150 / 240, 180 / 240, 210 / 240),
        "nesterov": True,
        "weight_decay": 5e-4,
    }
)
_TEACHER_RATE = 0.05


def preset(name: str, workload: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of a workload and those of its training for a published pair.

    Raises:
        ConfigError: an unknown pair, or a workload that trains neither of its networks.
    """
    if name not in PAIRS:
        raise ConfigError(f"unknown pair {name!r}; expected one of {', '.join(PAIRS)}")
    pair = PAIRS[name]
    if workload == "hsakd-teacher":
        return (
            {"model": pair.teacher, "data": "cifar100"},
            {**_RECIPE, "learning_rate": _TEACHER_RATE},
        )
    if workload not in ("kd", "dkd", "dist", "hsakd-student"):
        raise ConfigError(
            f"pair={name!r} is for kd, dkd, dist, hsakd-teacher and hsakd-student, not {workload!r}"
        )
    return (
        {"model": pair.student, "teacher": pair.teacher, "data": "cifar100"},
        {**_RECIPE, "learning_rate": pair.learning_rate},
    )
