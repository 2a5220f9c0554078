"""Join reducers to PyTorch's training wrappers."""

from gsdist.integrations.ddp import GsSgdState, ReducerState, attach, gs_sgd_hook, reducer_hook
from gsdist.integrations.outer_step import OuterStep, OuterStepConfig

__all__ = [
    "GsSgdState",
    "OuterStep",
    "OuterStepConfig",
    "ReducerState",
    "attach",
    "gs_sgd_hook",
    "reducer_hook",
]
