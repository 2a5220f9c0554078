"""Give the published settings of networks that teach each other.

Sources: Yang et al., Hierarchical Self-supervised Augmented Knowledge Distillation, 2021, section 4.1 (on
CIFAR-100 the same recipe as in Tian et al., Contrastive Representation Distillation, 2020); Yang et al.,
Mutual Contrastive Learning, 2022, section 4.1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from gsdist.errors import ConfigError

__all__ = ["PAIRS", "PEERS", "Pair", "preset"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Name two networks, their data, and the student's learning rate."""

    teacher: str
    student: str
    learning_rate: float = 0.05
    data: str = "cifar100"


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
        "resnet34:resnet18": Pair(
            teacher="resnet34", student="resnet18", learning_rate=0.1, data="imagenet"
        ),
    }
)
"""Published pairs by name, TEACHER:STUDENT."""
PEERS: Mapping[str, Mapping[str, tuple[str, float]]] = MappingProxyType(
    {
        "hssakd-online": {
            "wrn40-2": ("wrn-40-2", 0.05),
            "wrn40-1": ("wrn-40-1", 0.05),
            "resnet56": ("resnet56", 0.05),
            "resnet32x4": ("resnet32x4", 0.05),
            "vgg13": ("vgg13-cifar", 0.05),
            "mobilenetv2": ("mobilenetv2-half", 0.01),
            "shufflenetv1": ("shufflenetv1", 0.01),
            "shufflenetv2": ("shufflenetv2", 0.01),
        },
        "mcl": {
            "resnet32": ("resnet32", 0.1),
            "resnet56": ("resnet56", 0.1),
            "wrn16-2": ("wrn-16-2", 0.1),
            "wrn40-2": ("wrn-40-2", 0.1),
            "wrn28-4": ("wrn-28-4", 0.1),
            "shufflenetv2": ("shufflenetv2-stem3", 0.1),
            "shufflenetv2-half": ("shufflenetv2-half-stem3", 0.1),
        },
    }
)
"""Networks, and learning rates, of the workloads whose peers are alike; such a pair is NAME:NAME."""
_RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "cifar100": {
            "epochs": 240,
            "batch_size": 64,
            "schedule": "multistep",
            "milestones": (150 / 240, 180 / 240, 210 / 240),
            "nesterov": True,
            "weight_decay": 5e-4,
        },
        "imagenet": {
            "epochs": 100,
            "batch_size": 256,
            "schedule": "multistep",
            "milestones": (0.3, 0.6, 0.9),
            "weight_decay": 1e-4,
        },
        "mcl": {
            "epochs": 300,
            "batch_size": 128,
            "schedule": "cosine",
            "nesterov": True,
            "weight_decay": 5e-4,
        },
    }
)
"""By data set, and of mutual contrastive learning."""
_TEACHER_RATES = {"cifar100": 0.05, "imagenet": 0.1}
_TAUGHT = ("kd", "dkd", "dist", "hsakd-student")


def preset(name: str, workload: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of a workload and those of its training for a published pair.

    Raises:
        ConfigError: an unknown pair, or a workload that trains neither of its networks.
    """
    if workload in PEERS:
        return _peers_preset(name, workload)
    if workload not in (*_TAUGHT, "classification", "hsakd-teacher"):
        raise ConfigError(
            f"pair={name!r} is for classification, {', '.join(_TAUGHT)}, hsakd-teacher, "
            f"{' and '.join(PEERS)}, not {workload!r}"
        )
    if name not in PAIRS:
        raise ConfigError(f"unknown pair {name!r}; expected one of {', '.join(PAIRS)}")
    pair = PAIRS[name]
    recipe = _RECIPES[pair.data]
    if workload == "hsakd-teacher":
        rate = _TEACHER_RATES[pair.data]
        return {"model": pair.teacher, "data": pair.data}, {**recipe, "learning_rate": rate}
    settings = {"model": pair.student, "data": pair.data}
    if workload in _TAUGHT:
        settings["teacher"] = pair.teacher
    return settings, {**recipe, "learning_rate": pair.learning_rate}


def _peers_preset(name: str, workload: str) -> tuple[dict[str, Any], dict[str, Any]]:
    names = {f"{network}:{network}": network for network in PEERS[workload]}
    if name not in names:
        raise ConfigError(
            f"unknown pair {name!r} of {workload}; expected one of {', '.join(names)}"
        )
    model, rate = PEERS[workload][names[name]]
    recipe = _RECIPES["mcl" if workload == "mcl" else "cifar100"]
    return {"model": model, "data": "cifar100"}, {**recipe, "learning_rate": rate}
