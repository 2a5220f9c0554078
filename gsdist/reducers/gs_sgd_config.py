"""Configure gs-SGD and derive from it how much travels."""

import math
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Literal

from torch import Tensor

from gsdist.errors import ConfigError
from gsdist.reducers.layout import FlatLayout
from gsdist.reducers.wire import WireDtype, require_wire_dtype
from gsdist.sketch import BLOCK

__all__ = ["ExchangeSizes", "GsSgdConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GsSgdConfig:
    """Configure gs-SGD."""

    density: float = 0.004
    """k / d: the share of the sketched coordinates updated per step."""
    rows: int = 5
    """Rows of the table; odd."""
    column_factor: float = 2.0
    """Columns per selected coordinate, c / k; rounded up to a multiple of the sketch block."""
    preselect_factor: float = 2.0
    """p1: each worker sketches its own p1*k largest coordinates; 0 sketches the whole vector."""
    candidate_factor: float = 4.0
    """p2: the second round fetches exact sums of p2*k candidates."""
    wire_dtype: WireDtype = "float16"
    """Precision in which the table travels; exact values always travel in float32."""
    seed: int = 0
    """Seed of the sketch's hash functions, equal on all ranks."""
    momentum: Literal["post", "local"] = "post"
    """"post": the optimizer applies momentum to the averaged gradient. "local": gsdist takes the SGD
    optimizer's momentum over and applies it before compression (momentum correction)."""
    masking: bool = True
    """Clear the local momentum of coordinates that were sent; without effect above 5 % density."""
    warmup_steps: int = 10
    """Steps at the start that exchange the whole gradient."""
    density_ladder: tuple[float, ...] = ()
    """Densities used one after the other between warm-up and `density`, for example (0.0625, 0.0156)."""
    density_ladder_steps: int = 0
    """Steps spent on each density of the ladder."""
    min_numel: int = 2048
    """Parameters with fewer elements join the dense set, which always travels whole; so do all of at
    most one dimension (biases, normalisation)."""
    dense_parameters: tuple[str, ...] = ()
    """Patterns (as in fnmatch) of further parameter names for the dense set."""
    clip_norm: float | None = None
    """Clip each worker's gradient to clip_norm / sqrt(world size) before it is compressed, so that the
    norm of the sum stays near clip_norm. Clipping after the exchange would leave the residual unclipped."""
    non_finite: Literal["raise", "skip"] = "raise"
    """What all ranks do when some gradient is NaN or infinite and no loss scaler is attached."""
    deterministic: bool = False
    """Sketch in the order of the model's parameters, so that a restarted run, whose buckets differ, gives
    the same bits. Costs the overlap of sketching with backward when the whole vector is sketched."""

    def __post_init__(self) -> None:
        """Check the fields."""
        require_wire_dtype(self.wire_dtype)
        ladder = self.density_ladder
        checks = {
            "density": (0 < self.density <= 1, "in (0, 1], so that 1 <= k <= d"),
            "density_ladder": (all(0 < density <= 1 for density in ladder), "densities in (0, 1]"),
            "density_ladder_steps": (
                self.density_ladder_steps > 0 if ladder else self.density_ladder_steps == 0,
                "positive with a density_ladder, else 0",
            ),
            "rows": (self.rows % 2 == 1 and 1 <= self.rows <= 15, "odd and in 1..15"),
            "column_factor": (self.column_factor > 0, "positive"),
            "preselect_factor": (
                self.preselect_factor == 0 or self.preselect_factor >= 1,
                "0 (sketch the whole vector) or at least 1",
            ),
            "candidate_factor": (self.candidate_factor >= 1, "at least 1"),
            "seed": (0 <= self.seed < 2**64, "in 0..2**64-1"),
            "momentum": (self.momentum in ("post", "local"), '"post" or "local"'),
            "warmup_steps": (self.warmup_steps >= 0, "at least 0"),
            "min_numel": (self.min_numel >= 0, "at least 0"),
            "clip_norm": (self.clip_norm is None or self.clip_norm > 0, "None or positive"),
            "non_finite": (self.non_finite in ("raise", "skip"), '"raise" or "skip"'),
        }
        for name, (valid, expected) in checks.items():
            if not valid:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be {expected}")

    def is_dense(self, name: str, parameter: Tensor) -> bool:
        """Tell whether a parameter belongs to the dense set."""
        return (
            parameter.ndim <= 1
            or parameter.numel() < self.min_numel
            or any(fnmatch(name, pattern) for pattern in self.dense_parameters)
        )

    def density_at(self, step: int) -> float | None:
        """Return the density of a step, counted from 0; None means the whole gradient (warm-up)."""
        if step < self.warmup_steps:
            return None
        if self.density_ladder_steps:
            rung = (step - self.warmup_steps) // self.density_ladder_steps
            if rung < len(self.density_ladder):
                return self.density_ladder[rung]
        return self.density


@dataclass(frozen=True, kw_only=True, slots=True)
class ExchangeSizes:
    """Hold the counts that follow from a density and a layout."""

    selected: int
    candidates: int
    preselected: int
    columns: int

    @classmethod
    def of(cls, config: GsSgdConfig, density: float, layout: FlatLayout) -> "ExchangeSizes":
        """Compute them; candidates and preselected are at most all coordinates."""

        def at_most_all(factor: float) -> int:
            return min(math.ceil(factor * selected), layout.sketched_size)

        selected = max(1, round(density * layout.sketched_numel))
        return cls(
            selected=selected,
            candidates=at_most_all(config.candidate_factor),
            preselected=at_most_all(config.preselect_factor),
            columns=BLOCK * math.ceil(config.column_factor * selected / BLOCK),
        )
