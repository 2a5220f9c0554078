"""Drive reducers without DDP: named gradients in, named averages out, buckets as the test likes them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gsdist.reducers import (
    CompressedConfig,
    FlatLayout,
    GradientBucket,
    GradientSlice,
    Reducer,
    ReducerConfig,
    build_reducer,
)

SHAPES = {
    "first": (40, 30),
    "bias": (7,),
    "second": (70, 50),
    "small": (3, 3),
    "third": (20, 11, 3),
}
"""Shapes whose sizes are not multiples of the sketch block, with two members of the dense set."""
SKETCHED = ("first", "second", "third")


PARAMETERS = {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()}


def make_layout(config: ReducerConfig) -> FlatLayout:
    is_dense = config.is_dense if isinstance(config, CompressedConfig) else lambda *_: True
    return FlatLayout.from_parameters(PARAMETERS.items(), is_dense)


def make_reducer(
    config: ReducerConfig, group: dist.ProcessGroup | None = None, **options: Any
) -> Reducer:
    _, reducer = build_reducer(config, PARAMETERS, group or dist.group.WORLD, **options)
    return reducer


def exchange(
    reducer: Reducer,
    gradients: Mapping[str, Tensor],
    *,
    layout: FlatLayout,
    buckets: Sequence[Sequence[str]] = (tuple(SHAPES),),
    scale: float = 1.0,
) -> dict[str, Tensor]:
    """Exchange one set of gradients; return the averages in the gradients' shapes."""
    segments = {segment.name: segment for segment in layout}
    views: dict[str, Tensor] = {}
    for names in buckets:
        buffer = torch.cat([gradients[name].flatten() for name in names]) * scale
        slices, start = [], 0
        for name in names:
            views[name] = buffer[start : start + segments[name].numel]
            slices.append(GradientSlice(segment=segments[name], gradient=views[name]))
            start += segments[name].numel
        reducer.push(GradientBucket(buffer=buffer, slices=tuple(slices)), scale=scale)
    reducer.finish()
    return {name: views[name].reshape(SHAPES[name]) for name in gradients}


def integer_gradients(seed: int, largest: int = 1000) -> dict[str, Tensor]:
    """Draw gradients whose sums are exact in float32, whatever the order."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randint(-largest, largest + 1, shape, generator=generator).float()
        for name, shape in SHAPES.items()
    }


def normal_gradients(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def flatten(named: Mapping[str, Tensor]) -> Tensor:
    """Concatenate the compressed parameters, without the layout's padding."""
    return torch.cat([named[name].flatten() for name in SKETCHED])
