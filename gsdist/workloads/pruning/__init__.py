"""Offer pruning of filters while training: criteria, schedules and presets."""

from gsdist.workloads.pruning.config import PruningConfig
from gsdist.workloads.pruning.presets import PRESETS
from gsdist.workloads.pruning.pruner import Pruner, clear_masked_state
from gsdist.workloads.pruning.schedule import Step, step_at

__all__ = ["PRESETS", "Pruner", "PruningConfig", "Step", "clear_masked_state", "step_at"]
