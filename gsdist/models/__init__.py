"""Offer the networks that the workloads train."""

from gsdist.models.normalization import Normalization
from gsdist.models.registry import (
    build_model,
    build_staged_model,
    check_model,
    check_staged_model,
    model_names,
)
from gsdist.models.staged import StagedNetwork

__all__ = [
    "Normalization",
    "StagedNetwork",
    "build_model",
    "build_staged_model",
    "check_model",
    "check_staged_model",
    "model_names",
]
