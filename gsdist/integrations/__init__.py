"""Join reducers to PyTorch's training wrappers."""

from gsdist.integrations.ddp import GsSgdState, ReducerState, attach, gs_sgd_hook, reducer_hook
from gsdist.integrations.fault_tolerant import FaultTolerantExchange, attach_torchft
from gsdist.integrations.hybrid_shard import HybridShardExchange, attach_hybrid_shard
from gsdist.integrations.outer_step import OuterStep, OuterStepConfig

__all__ = [
    "FaultTolerantExchange",
    "GsSgdState",
    "HybridShardExchange",
    "OuterStep",
    "OuterStepConfig",
    "ReducerState",
    "attach",
    "attach_hybrid_shard",
    "attach_torchft",
    "gs_sgd_hook",
    "reducer_hook",
]
