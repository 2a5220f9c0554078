"""Name everything two sketches must agree on before they can be added."""

import operator
from dataclasses import dataclass
from typing import ClassVar

from gsdist.errors import ConfigError

__all__ = ["BLOCK", "MAX_DIMENSION", "MAX_ROWS", "SketchFormat", "integer"]

BLOCK = 64
"""Coordinates hashed together; fixed by format version 1."""

MAX_ROWS = 15
MAX_DIMENSION = 1 << 40
_COLUMNS_END = BLOCK << 32  # the fast range of the hash takes columns / BLOCK < 2^32
_SEEDS = 1 << 64


@dataclass(frozen=True, kw_only=True, slots=True)
class SketchFormat:
    """Fix the shape and the hash functions of a Count-Sketch.

    Raises:
        ConfigError: a value is outside the limits given below.
    """

    rows: int
    """Independent hash functions, odd so that the median is one of the estimates; 1 to 15."""

    columns: int
    """Cells per row, a positive multiple of 64; each row errs by about ||v||_2 / sqrt(columns)."""

    seed: int
    """Seed of the hash functions, 0 to 2^64 - 1; equal on all ranks."""

    dimension: int
    """Length of the vector that is sketched, 1 to 2^40."""

    version: ClassVar[int] = 1
    """Version of the hash functions and of the bytes."""

    def __post_init__(self) -> None:
        """Normalise integer-like values and check the limits."""
        for name in ("rows", "columns", "seed", "dimension"):
            object.__setattr__(self, name, integer(name, getattr(self, name)))
        if not (1 <= self.rows <= MAX_ROWS and self.rows % 2 == 1):
            raise ConfigError(
                f"rows={self.rows}: expected an odd number from 1 to {MAX_ROWS}, "
                "so that the median of the rows is one of them; 5 is a good start"
            )
        if not (0 < self.columns < _COLUMNS_END and self.columns % BLOCK == 0):
            above = max(BLOCK, -(-self.columns // BLOCK) * BLOCK)
            hint = f"; the next one is {above}" if above < _COLUMNS_END else ""
            raise ConfigError(
                f"columns={self.columns}: expected a positive multiple of {BLOCK} below 2^38{hint}"
            )
        if not 0 <= self.seed < _SEEDS:
            raise ConfigError(f"seed={self.seed}: expected 0 to 2^64 - 1")
        if not 1 <= self.dimension <= MAX_DIMENSION:
            raise ConfigError(f"dimension={self.dimension}: expected 1 to 2^40 coordinates")

    @property
    def table_shape(self) -> tuple[int, int]:
        """Return (rows, columns)."""
        return (self.rows, self.columns)

    def differences(self, other: "SketchFormat") -> str:
        """List the fields in which two formats differ, with both values; empty if they agree."""
        pairs = [
            (name, getattr(self, name), getattr(other, name))
            for name in ("version", "rows", "columns", "seed", "dimension")
        ]
        return ", ".join(f"{name} {mine} and {its}" for name, mine, its in pairs if mine != its)


def integer(name: str, value: object) -> int:
    """Return an integer-like value as int.

    Raises:
        ConfigError: it is something else, also a bool.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ConfigError(
            f"{name}={value!r}: expected an integer, got {type(value).__name__}"
        ) from None
