"""Time a compact network against the dense one, on one CPU thread."""

import time
from typing import Any

import torch
from torch import nn

__all__ = ["speedup"]

_REPEATS = 7


def speedup(dense: nn.Module, compact: nn.Module, example: tuple[Any, ...]) -> float:
    """Return seconds of `dense` over those of `compact`: the fastest of several, taken in turn."""
    best = [float("inf"), float("inf")]
    with torch.inference_mode():
        for attempt in range(_REPEATS + 1):
            for place, network in enumerate((dense.eval(), compact.eval())):
                begin = time.perf_counter()
                network(*example)
                if attempt:  # the first call is a warm-up
                    best[place] = min(best[place], time.perf_counter() - begin)
    return best[0] / best[1]
