"""Train PyTorch models whose workers sit behind a slow network.

Names are loaded on first use, so that `gsdist.sketch` works with NumPy alone.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gsdist.integrations.ddp import GsSgdState, ReducerState, attach, gs_sgd_hook
    from gsdist.integrations.fault_tolerant import attach_torchft
    from gsdist.integrations.hybrid_shard import attach_hybrid_shard
    from gsdist.reducers import DenseConfig, ExchangeStatistics, GsSgdConfig, GsSgdPaperConfig
    from gsdist.sketch import CountSketch, SketchFormat, build_info

try:
    __version__ = version("gsdist")
except PackageNotFoundError:  # imported from a source tree that was never installed
    __version__ = "0+uninstalled"

__all__ = [
    "CountSketch",
    "DenseConfig",
    "ExchangeStatistics",
    "GsSgdConfig",
    "GsSgdPaperConfig",
    "GsSgdState",
    "ReducerState",
    "SketchFormat",
    "__version__",
    "attach",
    "attach_hybrid_shard",
    "attach_torchft",
    "build_info",
    "gs_sgd_hook",
]

_HOMES = {
    "CountSketch": "gsdist.sketch",
    "SketchFormat": "gsdist.sketch",
    "build_info": "gsdist.sketch",
    "DenseConfig": "gsdist.reducers",
    "ExchangeStatistics": "gsdist.reducers",
    "GsSgdConfig": "gsdist.reducers",
    "GsSgdPaperConfig": "gsdist.reducers",
    "GsSgdState": "gsdist.integrations.ddp",
    "ReducerState": "gsdist.integrations.ddp",
    "attach": "gsdist.integrations.ddp",
    "attach_hybrid_shard": "gsdist.integrations.hybrid_shard",
    "attach_torchft": "gsdist.integrations.fault_tolerant",
    "gs_sgd_hook": "gsdist.integrations.ddp",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
