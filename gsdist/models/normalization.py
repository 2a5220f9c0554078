"""Swap batch normalisation for one that depends on neither the batch nor the world size."""

import math
from typing import Literal

from torch import nn

__all__ = ["GROUPS", "Normalization", "replace_batch_norm"]

Normalization = Literal["batch", "group"]
"""Batch normalisation, or group normalisation, which does not depend on the local batch."""

GROUPS = 8
"""Groups per layer; fewer where the channels do not divide."""


def replace_batch_norm(model: nn.Module) -> nn.Module:
    """Replace every `BatchNorm2d` inside `model` by a `GroupNorm` with the same affine weights.

    The number of parameters and the random numbers used stay as they were, so the same seed gives
    the same weights with either normalisation. Returns `model`. Source: Wu and He, Group
    Normalization, 2018.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, _group_norm_like(child))
    return model


def _group_norm_like(batch_norm: nn.BatchNorm2d) -> nn.GroupNorm:
    channels = batch_norm.num_features
    group_norm = nn.GroupNorm(
        math.gcd(GROUPS, channels), channels, eps=batch_norm.eps, affine=batch_norm.affine
    )
    if batch_norm.affine:
        group_norm.load_state_dict(
            {"weight": batch_norm.weight.detach(), "bias": batch_norm.bias.detach()}
        )
    return group_norm
