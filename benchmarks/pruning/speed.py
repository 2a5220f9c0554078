"""Time a compact network against the dense one, on one CPU thread."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import nn

from gsdist.compaction import Layout
from gsdist.models import build_model
from gsdist.workloads.pruning import PRESETS, Pruner

__all__ = ["Speed", "speedup", "speedups"]

_NETWORKS = ("vgg16-cifar", "resnet56", "mobilenetv2-half")
_BATCH = 16

_REPEATS = 5


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Hold what one network gains in one layout at half of its multiply-accumulates."""

    model: str
    layout: Layout
    macs_ratio: float
    params_ratio: float
    speedup: float


def speedups() -> Iterator[Speed]:
    """Prune fresh networks to half of their multiply-accumulates and time them; layout by layout."""
    images = (torch.randn(_BATCH, 3, 32, 32),)
    for name in _NETWORKS:
        for layout in get_args(Layout):
            dense = build_model(name, num_classes=10)
            masked = build_model(name, num_classes=10)
            config = replace(PRESETS["l1"], target="macs", rate=0.5, layout=layout)
            pruner = Pruner(masked, (images[0][:1],), config, total_events=1)
            pruner.on_train_begin()
            whole, left = pruner.counts()
            yield Speed(
                model=name,
                layout=layout,
                macs_ratio=left.macs / whole.macs,
                params_ratio=left.parameters / whole.parameters,
                speedup=speedup(dense, pruner.compact().model, images),
            )
