"""Offer the workloads the trainer runs, and the contract they keep."""

from gsdist.workloads import distillation, graph
from gsdist.workloads.classification import ClassificationConfig, ClassificationWorkload
from gsdist.workloads.contract import (
    BatchSchedule,
    FinalMeasures,
    LayoutChange,
    LossParts,
    Workload,
)
from gsdist.workloads.language import LanguageConfig, LanguageWorkload

__all__ = [
    "BatchSchedule",
    "ClassificationConfig",
    "ClassificationWorkload",
    "FinalMeasures",
    "LanguageConfig",
    "LanguageWorkload",
    "LayoutChange",
    "LossParts",
    "Workload",
    "distillation",
    "graph",
]
