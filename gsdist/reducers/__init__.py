"""Provide the exchange methods: local gradient in, agreed averaged gradient out."""

from gsdist.reducers.dense import DenseConfig, DenseReducer
from gsdist.reducers.gs_sgd import GsSgdReducer
from gsdist.reducers.gs_sgd_config import GsSgdConfig
from gsdist.reducers.layout import FlatLayout, Segment
from gsdist.reducers.protocol import (
    ExchangeStatistics,
    GradientBucket,
    GradientSlice,
    MomentumCorrection,
    Reducer,
)

ReducerConfig = DenseConfig | GsSgdConfig

__all__ = [
    "DenseConfig",
    "DenseReducer",
    "ExchangeStatistics",
    "FlatLayout",
    "GradientBucket",
    "GradientSlice",
    "GsSgdConfig",
    "GsSgdReducer",
    "MomentumCorrection",
    "Reducer",
    "ReducerConfig",
    "Segment",
]
