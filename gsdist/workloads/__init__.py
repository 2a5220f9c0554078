"""Offer the workloads the trainer runs, and the contract they keep."""

from gsdist.workloads.classification import ClassificationConfig, ClassificationWorkload
from gsdist.workloads.contract import LayoutChange, LossParts, Workload
from gsdist.workloads.language import LanguageConfig, LanguageWorkload

__all__ = [
    "ClassificationConfig",
    "ClassificationWorkload",
    "LanguageConfig",
    "LanguageWorkload",
    "LayoutChange",
    "LossParts",
    "Workload",
]
