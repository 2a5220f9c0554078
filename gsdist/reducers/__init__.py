"""Provide the exchange methods: local gradient in, agreed averaged gradient out."""

from gsdist.reducers.config import CompressedConfig, SparseConfig
from gsdist.reducers.dense import DenseConfig
from gsdist.reducers.factory import (
    REDUCER_CONFIGS,
    ReducerConfig,
    build_hierarchical_reducer,
    build_reducer,
    lay_out,
)
from gsdist.reducers.g_top_k import GTopKConfig
from gsdist.reducers.gs_sgd_config import GsSgdConfig
from gsdist.reducers.gs_sgd_paper_config import GsSgdPaperConfig
from gsdist.reducers.layout import FlatLayout, Segment
from gsdist.reducers.ok_top_k import OkTopKConfig
from gsdist.reducers.power_sgd import PowerSgdConfig
from gsdist.reducers.protocol import (
    ExchangeStatistics,
    GradientBucket,
    GradientSlice,
    MomentumCorrection,
    Reducer,
)
from gsdist.reducers.random_k import RandomKConfig
from gsdist.reducers.sketched_sgd import SketchedSgdConfig
from gsdist.reducers.top_k import TopKConfig

__all__ = [
    "REDUCER_CONFIGS",
    "CompressedConfig",
    "DenseConfig",
    "ExchangeStatistics",
    "FlatLayout",
    "GTopKConfig",
    "GradientBucket",
    "GradientSlice",
    "GsSgdConfig",
    "GsSgdPaperConfig",
    "MomentumCorrection",
    "OkTopKConfig",
    "PowerSgdConfig",
    "RandomKConfig",
    "Reducer",
    "ReducerConfig",
    "Segment",
    "SketchedSgdConfig",
    "SparseConfig",
    "TopKConfig",
    "build_hierarchical_reducer",
    "build_reducer",
    "lay_out",
]
