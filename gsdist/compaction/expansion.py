"""Restore the width of a sum behind layers that make only some of its channels."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ExpandedBatchNorm2d", "ExpandedConv2d", "expansion_index"]


def expansion_index(kept: Tensor) -> Tensor:
    """Return, for each wide channel, its place among the kept ones, or behind them if it is zero.

    `kept` is a bool tensor `(width,)`; the result is int64 `(width,)`.
    """
    places = torch.cumsum(kept, 0) - 1
    return torch.where(kept, places, int(kept.sum()))


def _expand(features: Tensor, index: Tensor) -> Tensor:
    """Append one zero channel and gather; in ONNX a Pad and a Gather."""
    return F.pad(features, (0, 0, 0, 0, 0, 1)).index_select(1, index)


class ExpandedConv2d(nn.Conv2d):
    """Convolve, then put the results among zero channels at their places in the sum."""

    expansion: Tensor

    def __init__(self, *args: Any, kept: Tensor, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_buffer("expansion", expansion_index(kept), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Turn `(N, in_channels, H, W)` into as many channels as `kept` is long."""
        return _expand(super().forward(features), self.expansion)


class ExpandedBatchNorm2d(nn.BatchNorm2d):
    """Normalise, then put the results among zero channels at their places in the sum."""

    expansion: Tensor

    def __init__(self, *args: Any, kept: Tensor, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_buffer("expansion", expansion_index(kept), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Turn `(N, num_features, H, W)` into as many channels as `kept` is long."""
        return _expand(super().forward(features), self.expansion)
