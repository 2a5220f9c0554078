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


class _Expanded(nn.Module):
    """Put the results of the layer behind it among zero channels at their places in the sum."""

    expansion: Tensor

    def __init__(self, *args: Any, kept: Tensor, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_buffer("expansion", expansion_index(kept), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Turn the layer's input `(N, C, H, W)` into as many channels as `kept` is long."""
        # one zero channel is appended and gathered from; in ONNX a Pad and a Gather
        wider = F.pad(super().forward(features), (0, 0, 0, 0, 0, 1))
        return wider.index_select(1, self.expansion)


class ExpandedConv2d(_Expanded, nn.Conv2d):
    """Convolve, then put the results among zero channels at their places in the sum."""


class ExpandedBatchNorm2d(_Expanded, nn.BatchNorm2d):
    """Normalise, then put the results among zero channels at their places in the sum."""
