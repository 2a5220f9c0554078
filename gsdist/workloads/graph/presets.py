"""Say with which settings to begin on each graph; those of published graphs are the authors'."""

from collections.abc import Mapping
from typing import Any

__all__ = ["preset"]

_ADAM = {"optimizer": "adamw", "betas": (0.9, 0.999), "weight_decay": 0.0}
"""Adam; the penalty on weights is part of the workload."""
_Settings = Mapping[str, Any]
_NODES: Mapping[str, tuple[_Settings, _Settings]] = {
    "films": (
        {"class_weights": "balanced", "weight_penalty": 1e-3},
        {"learning_rate": 5e-3, "steps": 150, "evaluate_every": 10, "batch_size": 976},
    ),
    "wordnet": (
        {"weight_penalty": 1e-3},
        {"learning_rate": 5e-3, "steps": 150, "evaluate_every": 10, "batch_size": 4096},
    ),
    "dblp": (
        {},
        {"learning_rate": 5e-3, "steps": 150, "evaluate_every": 10, "batch_size": 200},
    ),
    "imdb": (
        {"weight_penalty": 1e-3, "input_dropout": 0.5},
        {"learning_rate": 1e-3, "steps": 300, "evaluate_every": 10, "batch_size": 200},
    ),
    "hetero-sbm": (
        {"weight_penalty": 1e-3},
        {"learning_rate": 1e-2, "steps": 80, "evaluate_every": 10, "batch_size": 30},
    ),
}
"""Settings of the workload and of training. Batches fit two workers."""
_LINKS: Mapping[str, tuple[_Settings, _Settings]] = {
    "films": (
        {"weight_penalty": 1e-4},
        {"learning_rate": 5e-3, "steps": 200, "evaluate_every": 20, "batch_size": 8192},
    ),
    "last-fm": (
        {"weight_penalty": 1e-3},
        {"learning_rate": 1e-3, "epochs": 20, "batch_size": 512},
    ),
}


def preset(workload: str, data: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return settings of the workload and of training; for data without such a task, those of films."""
    known = _LINKS if workload == "mv-hetgnn-links" else _NODES
    settings, training = known.get(data, known["films"])
    return {"data": data, **settings}, {**_ADAM, **training}
