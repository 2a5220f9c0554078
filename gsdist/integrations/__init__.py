"""Join reducers to PyTorch's training wrappers."""

from gsdist.integrations.ddp import GsSgdState, ReducerState, attach, gs_sgd_hook, reducer_hook

__all__ = ["GsSgdState", "ReducerState", "attach", "gs_sgd_hook", "reducer_hook"]
