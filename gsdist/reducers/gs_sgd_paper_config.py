"""Configure gs-SGD and derive from it how much travels."""

import math
from dataclasses import dataclass
from typing import Literal

from gsdist.reducers.config import SparseConfig, check_fields
from gsdist.reducers.layout import FlatLayout
from gsdist.reducers.wire import WireDtype, require_wire_dtype
from gsdist.sketch import BLOCK

__all__ = ["ExchangeSizes", "GsSgdPaperConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GsSgdPaperConfig(SparseConfig):
    """Configure gs-SGD."""

    rows: int = 5
    """Rows of the table; odd."""
    column_factor: float = 2.0
    """Columns per selected coordinate, c / k; rounded up to a multiple of the sketch block."""
    preselect_factor: float = 2.0
    """p1: each worker sketches its p1*k largest coordinates; 0: the whole vector."""
    candidate_factor: float = 4.0
    """p2: the second round fetches exact sums of p2*k candidates."""
    wire_dtype: WireDtype = "float16"
    """Precision in which the table travels; exact values travel in float32."""
    collective: Literal["native", "tree"] = "native"
    """Sum by the backend's all-reduce, or along a tree: more bytes in fewer messages."""
    seed: int = 0
    """Seed of the sketch's hash functions, equal on all ranks."""
    deterministic: bool = False
    """Sketch in the order of the model's parameters: a restarted run gives the same bits."""

    def __post_init__(self) -> None:
        """Check the fields."""
        SparseConfig.__post_init__(self)
        require_wire_dtype(self.wire_dtype)
        checks = {
            "rows": (self.rows % 2 == 1 and 1 <= self.rows <= 15, "odd and in 1..15"),
            "column_factor": (self.column_factor > 0, "positive"),
            "preselect_factor": (
                self.preselect_factor == 0 or self.preselect_factor >= 1,
                "0 (sketch the whole vector) or at least 1",
            ),
            "candidate_factor": (self.candidate_factor >= 1, "at least 1"),
            "collective": (self.collective in ("native", "tree"), '"native" or "tree"'),
            "seed": (0 <= self.seed < 2**64, "in 0..2**64-1"),
        }
        check_fields(self, checks)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExchangeSizes:
    """Hold the counts of one step."""

    selected: int
    candidates: int
    preselected: int
    columns: int

    @classmethod
    def at(cls, step: int, config: GsSgdPaperConfig, layout: FlatLayout) -> "ExchangeSizes":
        """Compute them; candidates and preselected are at most all coordinates."""
        selected = config.selected_at(step, layout)

        def at_most_all(factor: float) -> int:
            count = math.ceil(factor * selected)
            # All means padding too: padding must not take the place of a parameter.
            return count if count < layout.compressed_numel else layout.compressed_size

        return cls(
            selected=selected,
            candidates=at_most_all(config.candidate_factor),
            preselected=at_most_all(config.preselect_factor),
            columns=BLOCK * math.ceil(config.column_factor * selected / BLOCK),
        )
