"""Fit an exchange method's settings to the optimizer, where nobody has chosen them."""

from dataclasses import replace

from gsdist.reducers import GsSgdConfig, ReducerConfig, SparseConfig
from gsdist.training.config import TrainConfig

__all__ = ["suited_to"]

_ADAMW_WARMUP = 20
"""Whole gradients that AdamW's squares begin with before gs-SGD compresses; docs/gs-sgd.md says why."""


def suited_to(train: TrainConfig, reducer: ReducerConfig) -> ReducerConfig:
    """Return a method's settings as they suit an exchange in every step of the trainer's optimizer.

    The trainer owns the optimizer, so momentum is applied before compression where there is any.
    """
    if isinstance(reducer, SparseConfig) and train.optimizer == "sgd" and train.momentum > 0:
        return replace(reducer, momentum="local")
    if isinstance(reducer, GsSgdConfig) and train.optimizer == "adamw":
        return replace(reducer, warmup_steps=_ADAMW_WARMUP)
    return reducer
