"""Fit an exchange method's settings to the optimizer, where nobody has chosen them."""

from dataclasses import replace

from gsdist.reducers import GsSgdConfig, ReducerConfig, SparseConfig
from gsdist.training.config import TrainConfig

__all__ = ["suited_to"]

_ADAMW_WARMUP, _ADAMW_DIRECTIONS = 20, 512
"""Whole gradients that AdamW's squares begin with before gs-SGD compresses, and directions that it then
keeps: AdamW steps as far along weak directions as along strong ones. Measured in docs/gs-sgd.md."""


def suited_to(train: TrainConfig, reducer: ReducerConfig) -> ReducerConfig:
    """Return a method's settings as they suit an exchange in every step of the trainer's optimizer.

    The trainer owns the optimizer, so momentum is applied before compression where there is any.
    """
    if isinstance(reducer, SparseConfig) and train.optimizer == "sgd" and train.momentum > 0:
        return replace(reducer, momentum="local")
    if isinstance(reducer, GsSgdConfig) and train.optimizer == "adamw":
        return replace(reducer, warmup_steps=_ADAMW_WARMUP, max_directions=_ADAMW_DIRECTIONS)
    return reducer
