"""Offer the workloads the trainer runs, and the contract they keep."""

from gsdist.workloads import distillation
from gsdist.workloads.classification import ClassificationConfig, ClassificationWorkload
from gsdist.workloads.contract import BatchSchedule, LayoutChange, LossParts, Workload
from gsdist.workloads.language import LanguageConfig, LanguageWorkload

__all__ = [
    "BatchSchedule",
    "ClassificationConfig",
    "ClassificationWorkload",
    "LanguageConfig",
    "LanguageWorkload",
    "LayoutChange",
    "LossParts",
    "Workload",
    "distillation",
]
