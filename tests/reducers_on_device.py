"""Run every exchange method for a few steps, on any device, to compare devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gsdist.reducers import (
    DenseConfig,
    GradientBucket,
    GsSgdConfig,
    GsSgdPaperConfig,
    GTopKConfig,
    MomentumCorrection,
    OkTopKConfig,
    PowerSgdConfig,
    RandomKConfig,
    ReducerConfig,
    SketchedSgdConfig,
    TopKConfig,
    build_reducer,
)

STEPS = 4
SHAPES = {"convolution": (6, 4, 3, 3), "bias": (6,), "linear": (20, 30)}
SELECTING: dict[str, Any] = {"density": 0.05, "min_numel": 32}
CONFIGS: dict[str, ReducerConfig] = {
    "dense": DenseConfig(),
    "dense, deterministic, bf16": DenseConfig(wire_dtype="bfloat16", deterministic=True),
    "gs-sgd": GsSgdConfig(compression=3, min_numel=32, max_directions=4, refresh_interval=2),
    "gs-sgd, whole sides": GsSgdConfig(
        compression=3, min_numel=32, max_directions=8, one_sided_above=100, refresh_interval=2
    ),
    "gs-sgd-paper": GsSgdPaperConfig(**SELECTING, wire_dtype="float16"),
    "gs-sgd-paper, whole, momentum": GsSgdPaperConfig(
        **SELECTING, preselect_factor=0.0, momentum="local", clip_norm=1.0
    ),
    "top-k": TopKConfig(**SELECTING, warmup_steps=1),
    "proposals": TopKConfig(**SELECTING, exchange="proposals", momentum="local"),
    "g-top-k": GTopKConfig(**SELECTING),
    "ok-top-k": OkTopKConfig(**SELECTING),
    "sketched-sgd": SketchedSgdConfig(**SELECTING),
    "random-k": RandomKConfig(**SELECTING),
    "power-sgd": PowerSgdConfig(min_numel=32, rank=2, wire_dtype="float16"),
}


def run_steps(
    config: ReducerConfig, group: dist.ProcessGroup, place: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """Return this rank's averages after every step, the last one masked, and its residuals; on the CPU.

    `place` copies a CPU tensor to the device.
    """
    named = {name: place(torch.zeros(shape)).requires_grad_() for name, shape in SHAPES.items()}
    local = getattr(config, "momentum", "post") == "local"
    momentum = MomentumCorrection(factor=0.9, nesterov=True) if local else None
    layout, reducer = build_reducer(config, named, group, momentum=momentum)
    generator = torch.Generator().manual_seed(group.rank())
    seen = []
    for step in range(STEPS):
        if step == STEPS - 1:
            kept = torch.rand(SHAPES["linear"], generator=torch.Generator().manual_seed(9)) > 0.2
            reducer.set_mask({"linear": place(kept)})
        bucket = GradientBucket.whole(layout, place(torch.randn(layout.numel, generator=generator)))
        reducer.push(bucket)
        reducer.finish()
        seen.append(bucket.buffer.cpu().clone())
    reducer.load_state_dict(reducer.state_dict())
    residuals = reducer.state_for_new_layout().get("residual", {})
    return seen + [residual.cpu().clone() for residual in residuals.values()]
