"""Say with which settings to begin on each graph."""

from collections.abc import Mapping
from typing import Any

__all__ = ["preset"]

_ADAM = {"optimizer": "adamw", "betas": (0.9, 0.999), "weight_decay": 0.0}
"""Adam; the penalty on weights is part of the workload."""
_LINKS = {
    **_ADAM,
    "learning_rate": 5e-3,
    "steps": 200,
    "evaluate_every": 20,
    "batch_size": 8192,
}
_TRAINING: Mapping[str, Mapping[str, Any]] = {
    "films": {
        **_ADAM,
        "learning_rate": 5e-3,
        "steps": 150,
        "evaluate_every": 10,
        "batch_size": 976,
    },
    "dblp": {
        **_ADAM,
        "learning_rate": 5e-3,
        "steps": 150,
        "evaluate_every": 10,
        "batch_size": 200,
    },
}
_WORKLOAD: Mapping[str, Mapping[str, Any]] = {
    "films": {"class_weights": "balanced", "weight_penalty": 1e-3},
}


def preset(workload: str, data: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return settings of the workload and of training; without the data's own, those of films."""
    if workload == "mv-hetgnn-links":
        return {"data": data, "weight_penalty": 1e-4}, dict(_LINKS)
    training = _TRAINING.get(data, _TRAINING["films"])
    return {"data": data, **_WORKLOAD.get(data, {})}, dict(training)
