"""Sketch long vectors into small mergeable tables and find their heavy coordinates again.

`docs/sketch-format.md` describes the format bit by bit. Works on NumPy arrays without torch; when
torch is installed CPU tensors are accepted too and `torch.ops.gsdist.*` are registered.
"""

from gsdist.sketch.backend import build_info, get_num_threads, set_num_threads
from gsdist.sketch.count_sketch import CountSketch
from gsdist.sketch.format import BLOCK, SketchFormat

__all__ = [
    "BLOCK",
    "CountSketch",
    "SketchFormat",
    "build_info",
    "get_num_threads",
    "set_num_threads",
]

try:
    import torch as _torch  # noqa: F401
except ImportError:
    pass
else:
    from gsdist.sketch import torch_ops as _torch_ops  # noqa: F401  (registers the operators)
