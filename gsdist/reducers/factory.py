"""Name the exchange methods and build the one that a configuration describes."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch.distributed as dist
from torch import Tensor

from gsdist.collectives import NodeGroups
from gsdist.errors import InputTypeError
from gsdist.reducers.compressed import CompressedReducer
from gsdist.reducers.config import CompressedConfig
from gsdist.reducers.dense import DenseConfig, DenseReducer
from gsdist.reducers.g_top_k import GTopKConfig, GTopKReducer
from gsdist.reducers.gs_sgd import GsSgdReducer
from gsdist.reducers.gs_sgd_config import GsSgdConfig
from gsdist.reducers.gs_sgd_paper import GsSgdPaperReducer
from gsdist.reducers.gs_sgd_paper_config import GsSgdPaperConfig
from gsdist.reducers.hierarchical import HierarchicalReducer
from gsdist.reducers.layout import FlatLayout
from gsdist.reducers.ok_top_k import OkTopKConfig, OkTopKReducer
from gsdist.reducers.power_sgd import PowerSgdConfig, PowerSgdReducer
from gsdist.reducers.protocol import MomentumCorrection, Reducer
from gsdist.reducers.random_k import RandomKConfig, RandomKReducer
from gsdist.reducers.sketched_sgd import SketchedSgdConfig, SketchedSgdReducer
from gsdist.reducers.top_k import TopKConfig, TopKReducer

__all__ = [
    "REDUCER_CONFIGS",
    "ReducerConfig",
    "build_hierarchical_reducer",
    "build_reducer",
    "lay_out",
]

ReducerConfig = (
    DenseConfig
    | GsSgdConfig
    | GsSgdPaperConfig
    | TopKConfig
    | GTopKConfig
    | OkTopKConfig
    | SketchedSgdConfig
    | RandomKConfig
    | PowerSgdConfig
)
"""The configuration of any exchange method."""

REDUCER_CONFIGS: Mapping[str, type[ReducerConfig]] = MappingProxyType(
    {
        "dense": DenseConfig,
        "gs-sgd": GsSgdConfig,
        "gs-sgd-paper": GsSgdPaperConfig,
        "top-k": TopKConfig,
        "g-top-k": GTopKConfig,
        "ok-top-k": OkTopKConfig,
        "sketched-sgd": SketchedSgdConfig,
        "random-k": RandomKConfig,
        "power-sgd": PowerSgdConfig,
    }
)
"""Configuration class of every method, by the name users give."""

_COMPRESSED: Mapping[type[CompressedConfig], type[CompressedReducer[Any]]] = MappingProxyType(
    {
        GsSgdConfig: GsSgdReducer,
        GsSgdPaperConfig: GsSgdPaperReducer,
        TopKConfig: TopKReducer,
        GTopKConfig: GTopKReducer,
        OkTopKConfig: OkTopKReducer,
        SketchedSgdConfig: SketchedSgdReducer,
        RandomKConfig: RandomKReducer,
        PowerSgdConfig: PowerSgdReducer,
    }
)


def lay_out(config: ReducerConfig, parameters: Mapping[str, Tensor]) -> FlatLayout:
    """Lay out named parameters as the method needs them.

    Raises:
        InputTypeError: `config` is no reducer configuration.
        GsdistError: the parameters cannot be exchanged.
    """
    if isinstance(config, DenseConfig):
        return FlatLayout.from_parameters(parameters.items(), lambda name, parameter: True)
    if type(config) not in _COMPRESSED:
        names = ", ".join(kind.__name__ for kind in REDUCER_CONFIGS.values())
        raise InputTypeError(f"config is a {type(config).__name__}; it must be one of {names}")
    return FlatLayout.from_parameters(parameters.items(), config.is_dense)


def build_reducer(
    config: ReducerConfig,
    parameters: Mapping[str, Tensor],
    group: dist.ProcessGroup,
    *,
    momentum: MomentumCorrection | None = None,
    loss_scaled: bool = False,
) -> tuple[FlatLayout, Reducer]:
    """Lay out named parameters and build the reducer that exchanges their gradients.

    Raises:
        InputTypeError: `config` is no reducer configuration.
        GsdistError: the parameters or settings do not fit the method.
    """
    layout = lay_out(config, parameters)
    if isinstance(config, DenseConfig):
        return layout, DenseReducer(layout, config, group)
    reducer = _COMPRESSED[type(config)](
        layout, config, group, momentum=momentum, loss_scaled=loss_scaled
    )
    return layout, reducer


def build_hierarchical_reducer(
    config: ReducerConfig,
    parameters: Mapping[str, Tensor],
    groups: NodeGroups,
    *,
    momentum: MomentumCorrection | None = None,
    loss_scaled: bool = False,
) -> tuple[FlatLayout, Reducer]:
    """Build the reducer that averages inside nodes and exchanges between them by the configured method.

    Raises:
        InputTypeError: `config` is no reducer configuration.
        GsdistError: the parameters or settings do not fit the method; on leaders only.
    """
    if groups.leaders is None:
        layout, between = lay_out(config, parameters), None
    else:
        layout, between = build_reducer(
            config, parameters, groups.leaders, momentum=momentum, loss_scaled=loss_scaled
        )
    return layout, HierarchicalReducer(layout, groups, between)
