"""Name the methods of the comparison and say by which setting each is fitted to a budget."""

import math
from ast import literal_eval
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal

from benchmarks.convergence.oracle import OracleConfig
from gsdist.reducers import (
    GsSgdConfig,
    GsSgdPaperConfig,
    GTopKConfig,
    PowerSgdConfig,
    RandomKConfig,
    SketchedSgdConfig,
    SparseConfig,
    TopKConfig,
)
from gsdist.training import TrainConfig
from gsdist.training.suited import suited_to

__all__ = [
    "DENSE",
    "METHODS",
    "Fittable",
    "Optimizer",
    "fill_amount",
    "filled",
    "settings_of",
    "sized",
]

Fittable = (
    GsSgdConfig
    | GsSgdPaperConfig
    | TopKConfig
    | GTopKConfig
    | SketchedSgdConfig
    | RandomKConfig
    | PowerSgdConfig
    | OracleConfig
)
"""Configurations that can send less."""

Optimizer = Literal["sgd", "adamw"]
"""What steps on the averaged gradient."""

DENSE = "dense"
"""Name of the rows without compression."""

METHODS: Mapping[str, Fittable] = MappingProxyType(
    {
        "oracle": OracleConfig(momentum="local", min_numel=0),
        "gs-sgd": GsSgdConfig(min_numel=0),
        "gs-sgd-paper": GsSgdPaperConfig(momentum="local", min_numel=0),
        "gs-sgd-paper-whole": GsSgdPaperConfig(momentum="local", min_numel=0, preselect_factor=0.0),
        "proposals": TopKConfig(momentum="local", min_numel=0, exchange="proposals"),
        "top-k": TopKConfig(momentum="local", min_numel=0),
        "g-top-k": GTopKConfig(momentum="local", min_numel=0),
        "g-top-k-original": GTopKConfig(min_numel=0, dropped="forget"),
        "sketched-sgd": SketchedSgdConfig(momentum="local", min_numel=0, preselect_factor=0.0),
        "power-sgd": PowerSgdConfig(min_numel=0),
        "random-k": RandomKConfig(momentum="local", min_numel=0),
    }
)
"""Settings that no budget changes, by the method's name; dense is no method, but what all are held against.

Methods that choose coordinates get momentum correction, which all of them gain by; the original gTop-k and
the low-rank methods (PowerSGD, gs-SGD) apply momentum after the exchange. Only biases and normalisation
travel whole: in nets as small as these, more would leave a small budget nothing to choose by. "gs-sgd-paper"
sketches each worker's largest coordinates, "gs-sgd-paper-whole" the whole vector.
"""


def settings_of(name: str, optimizer: Optimizer = "sgd") -> Fittable:
    """Return the settings of a method, some of them replaced: "gs-sgd:max_directions=16,seed=3".

    AdamW's averages want the gradient itself, so momentum stays with it; what else suits it is what
    `gsdist train` takes.

    Raises:
        ValueError: no such method or field, or not a value of its type.
    """
    method, _, changes = name.partition(":")
    if method not in METHODS:
        raise ValueError(f"{method!r} is none of {', '.join(METHODS)}")
    config = METHODS[method]
    if optimizer == "adamw":
        config = suited_to(TrainConfig(optimizer="adamw"), replace(config, momentum="post"))
    changed = {}
    for change in filter(None, changes.split(",")):
        field, _, value = change.partition("=")
        if not hasattr(config, field):
            raise ValueError(f"{method} has no setting {field!r}")
        changed[field] = _value(value)
    return replace(config, **changed)


def _value(text: str) -> Any:
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError):
        return text  # a bare word


def sized(config: Fittable, compressed_numel: int, amount: int) -> Fittable:
    """Set what a method sends per step: the rank, or the number of coordinates it selects."""
    if isinstance(config, SparseConfig):
        return replace(config, density=amount / compressed_numel)
    return replace(config, rank=amount)


def fill_amount(config: Fittable, compressed_numel: int) -> int | None:
    """Return the present amount of what takes up the rest of a budget; None: nothing does.

    Columns come in blocks and ranks are few, so both leave a rest.
    """
    if isinstance(config, GsSgdPaperConfig):
        return math.ceil(config.candidate_factor * round(config.density * compressed_numel))
    return config.warmup_steps if isinstance(config, PowerSgdConfig) else None


def filled(config: Fittable, compressed_numel: int, amount: int) -> Fittable:
    """Set that amount: candidates of a sketch, or dense steps at the start of PowerSGD."""
    if isinstance(config, GsSgdPaperConfig):
        selected = round(config.density * compressed_numel)
        return replace(config, candidate_factor=amount / selected)
    return replace(config, warmup_steps=amount)
