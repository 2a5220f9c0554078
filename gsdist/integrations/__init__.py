"""Join reducers to PyTorch's training wrappers."""

from gsdist.integrations.ddp import GsSgdState, ReducerState, attach, gs_sgd_hook, reducer_hook
from gsdist.integrations.hybrid_shard import HybridShardExchange, attach_hybrid_shard
from gsdist.integrations.outer_step import OuterStep, OuterStepConfig

__all__ = [
    "GsSgdState",
    "HybridShardExchange",
    "OuterStep",
    "OuterStepConfig",
    "ReducerState",
    "attach",
    "attach_hybrid_shard",
    "gs_sgd_hook",
    "reducer_hook",
]
