"""Name the methods that are compared, with settings that give all sparse ones the same k."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch.distributed as dist
from torch import Tensor

from benchmarks.g_top_k_original import OriginalGTopKConfig, OriginalGTopKReducer
from gsdist.reducers import (
    DenseConfig,
    FlatLayout,
    GsSgdConfig,
    GsSgdPaperConfig,
    GTopKConfig,
    OkTopKConfig,
    PowerSgdConfig,
    RandomKConfig,
    Reducer,
    ReducerConfig,
    SketchedSgdConfig,
    TopKConfig,
    build_reducer,
)
from gsdist.reducers.gs_sgd_config import ByteBudget

__all__ = ["METHODS", "ORIGINAL", "Config", "build_method", "cycle_of", "tolerance_of"]

Config = ReducerConfig | OriginalGTopKConfig
ORIGINAL = "g-top-k-original"

METHODS: Mapping[str, Callable[[float], Config]] = MappingProxyType(
    {
        "dense-fp32": lambda density: DenseConfig(),
        "dense-bf16": lambda density: DenseConfig(wire_dtype="bfloat16"),
        "dense-fp16": lambda density: DenseConfig(wire_dtype="float16"),
        "gs-sgd": lambda density: GsSgdConfig(),
        "gs-sgd-16": lambda density: GsSgdConfig(max_directions=16),
        "gs-sgd-paper": lambda density: GsSgdPaperConfig(density=density, warmup_steps=0),
        "gs-sgd-paper-tree": lambda density: GsSgdPaperConfig(
            density=density, warmup_steps=0, collective="tree"
        ),
        "gs-sgd-paper-whole": lambda density: GsSgdPaperConfig(
            density=density, warmup_steps=0, preselect_factor=0.0, wire_dtype="float32"
        ),
        "sketched-sgd": lambda density: SketchedSgdConfig(density=density, warmup_steps=0),
        "top-k": lambda density: TopKConfig(density=density, warmup_steps=0),
        "top-k-proposals": lambda density: TopKConfig(
            density=density, warmup_steps=0, exchange="proposals"
        ),
        "g-top-k": lambda density: GTopKConfig(density=density, warmup_steps=0),
        "ok-top-k": lambda density: OkTopKConfig(density=density, warmup_steps=0),
        ORIGINAL: lambda density: OriginalGTopKConfig(density=density, warmup_steps=0),
        "random-k": lambda density: RandomKConfig(density=density, warmup_steps=0),
        "power-sgd": lambda density: PowerSgdConfig(rank=2, warmup_steps=0),
    }
)
"""Method name -> configuration from the density k / d, which does not concern the low-rank methods.

`gs-sgd-16` follows fewer directions, for less computing and less accuracy; `gs-sgd-paper-whole` sketches the
whole vector in single precision, as the papers do; `g-top-k-original` is `benchmarks.g_top_k_original`.
"""

_TOLERANCES = {
    "dense-bf16": 5e-2,
    "dense-fp16": 1e-2,
    "gs-sgd": 2e-3,
    "gs-sgd-16": 2e-3,
    "power-sgd": 1e-4,
}


def tolerance_of(method: str) -> float:
    """Return how far, as a share of its norm, a method's arithmetic may miss a sum of integers."""
    return _TOLERANCES.get(method, 1e-5)


def cycle_of(config: Config, parameters: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return after how many exchanges, and every how many, a method repeats itself.

    gs-SGD searches once in an interval, more often at the start; what it costs is the mean of an interval.
    """
    if not isinstance(config, GsSgdConfig):
        return 0, 1
    layout = FlatLayout.from_parameters(parameters.items(), config.is_dense)
    interval = ByteBudget.of(config, layout).interval
    return 3 * interval, interval


def build_method(
    config: Config, parameters: Mapping[str, Tensor], group: dist.ProcessGroup
) -> tuple[FlatLayout, Reducer]:
    """Build a method's reducer for these parameters.

    Raises:
        GsdistError: the parameters or settings do not fit the method.
    """
    if isinstance(config, OriginalGTopKConfig):
        layout = FlatLayout.from_parameters(parameters.items(), config.is_dense)
        return layout, OriginalGTopKReducer(layout, config, group)
    return build_reducer(config, parameters, group)
