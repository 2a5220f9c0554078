"""Configure what all compressed exchange methods have in common."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Literal

from torch import Tensor

from gsdist.errors import ConfigError
from gsdist.reducers.layout import FlatLayout

__all__ = ["CompressedConfig", "SparseConfig", "check_fields"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressedConfig:
    """Configure error feedback, momentum correction, warm-up and the dense set."""

    momentum: Literal["post", "local"] = "post"
    """Apply momentum after the exchange (in the optimizer) or on each worker before compression."""
    warmup_steps: int = 10
    """Steps at the start that exchange the whole gradient."""
    min_numel: int = 2048
    """Smaller parameters always travel whole, as do biases and normalisation (one dimension)."""
    dense_parameters: tuple[str, ...] = ()
    """Patterns (fnmatch) of further parameter names that always travel whole."""
    clip_norm: float | None = None
    """Clip each worker's gradient, before it is compressed, to clip_norm * sqrt(world size)."""
    non_finite: Literal["raise", "skip", "zero"] = "raise"
    """What all ranks do about a NaN or infinite gradient when no loss scaler is attached; zero: the rank that
    has it puts zeros in the place of what is not finite, and all go on."""

    def __post_init__(self) -> None:
        """Check the fields."""
        checks = {
            "momentum": (self.momentum in ("post", "local"), '"post" or "local"'),
            "warmup_steps": (self.warmup_steps >= 0, "at least 0"),
            "min_numel": (self.min_numel >= 0, "at least 0"),
            "clip_norm": (self.clip_norm is None or self.clip_norm > 0, "None or positive"),
            "non_finite": (
                self.non_finite in ("raise", "skip", "zero"),
                '"raise", "skip" or "zero"',
            ),
        }
        check_fields(self, checks)

    def is_dense(self, name: str, parameter: Tensor) -> bool:
        """Tell whether a parameter belongs to the dense set."""
        return (
            parameter.ndim <= 1
            or parameter.numel() < self.min_numel
            or any(fnmatch(name, pattern) for pattern in self.dense_parameters)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseConfig(CompressedConfig):
    """Configure a method that updates k of the compressed coordinates per step."""

    density: float = 0.004
    """k / d: the share of the compressed coordinates updated per step."""
    density_ladder: tuple[float, ...] = ()
    """Densities used one after the other between warm-up and `density`."""
    density_ladder_steps: int = 0
    """Steps spent on each density of the ladder."""
    masking: bool = True
    """Clear the local momentum of coordinates that were sent; never above 5 % density."""

    def __post_init__(self) -> None:
        """Check the fields."""
        # Not super(): dataclasses with slots are made twice, and super() would see the first.
        CompressedConfig.__post_init__(self)
        ladder = self.density_ladder
        checks = {
            "density": (0 < self.density <= 1, "in (0, 1], so that 1 <= k <= d"),
            "density_ladder": (all(0 < density <= 1 for density in ladder), "densities in (0, 1]"),
            "density_ladder_steps": (
                self.density_ladder_steps > 0 if ladder else self.density_ladder_steps == 0,
                "positive with a density_ladder, else 0",
            ),
        }
        check_fields(self, checks)

    def density_at(self, step: int) -> float:
        """Return the density of a step, counted from 0; during warm-up that of the first step after."""
        rung = max(step - self.warmup_steps, 0)
        if self.density_ladder and rung < len(self.density_ladder) * self.density_ladder_steps:
            return self.density_ladder[rung // self.density_ladder_steps]
        return self.density

    def selected_at(self, step: int, layout: FlatLayout) -> int:
        """Return k of a step: at least 1, at most all compressed parameters."""
        return max(1, round(self.density_at(step) * layout.compressed_numel))


def check_fields(config: object, checks: Mapping[str, tuple[bool, str]]) -> None:
    """Check fields of a config by name: (is valid, what was expected).

    Raises:
        ConfigError: naming the first invalid field, its value and what was expected.
    """
    for name, (valid, expected) in checks.items():
        if not valid:
            raise ConfigError(f"{name} is {getattr(config, name)!r}; it must be {expected}")
