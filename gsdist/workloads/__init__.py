"""Offer the workloads the trainer runs, and the contract they keep."""

from gsdist.workloads.classification import ClassificationConfig, ClassificationWorkload
from gsdist.workloads.contract import LayoutChange, LossParts, Workload

__all__ = [
    "ClassificationConfig",
    "ClassificationWorkload",
    "LayoutChange",
    "LossParts",
    "Workload",
]
