"""Compute the learning rate of every step from the configuration alone."""

import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from gsdist.training.config import TrainConfig

__all__ = ["learning_rate_factor", "make_scheduler"]


def learning_rate_factor(step: int, *, config: TrainConfig, total_steps: int) -> float:
    """Return the learning rate of `step` (counted from 0) as a share of its peak."""
    if step < config.lr_warmup_steps:
        return (step + 1) / config.lr_warmup_steps
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "multistep":
        passed = sum(step >= mark * total_steps for mark in config.milestones)
        return float(config.milestone_factor**passed)
    span = max(1, total_steps - config.lr_warmup_steps)
    done = min(1.0, (step - config.lr_warmup_steps) / span)
    return 0.5 * (1.0 + math.cos(math.pi * done))


def make_scheduler(optimizer: Optimizer, config: TrainConfig, total_steps: int) -> LambdaLR:
    """Return the scheduler to be stepped once after every optimizer step."""
    return LambdaLR(
        optimizer, partial(learning_rate_factor, config=config, total_steps=total_steps)
    )
