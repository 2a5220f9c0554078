"""Configure gs-SGD and divide its bytes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gsdist.errors import ConfigError
from gsdist.reducers.agreement_lanes import LANES
from gsdist.reducers.config import check_fields
from gsdist.reducers.factors import FactorConfig
from gsdist.reducers.layout import FlatLayout

__all__ = ["ByteBudget", "GsSgdConfig", "steps_to_next_refresh"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GsSgdConfig(FactorConfig):
    """Configure gs-SGD."""

    compression: float = 30.0
    """Bytes of a dense float32 exchange over those of this one, in the mean of many steps."""
    refresh_interval: int = 10
    """Steps from one sketch to the next; fewer at the start, more where its bytes do not suffice."""
    refresh_share: float = 0.25
    """Share of the bytes that goes into sketches and the exact values they lead to."""
    direction_decay: float = 0.95
    """Factor per step by which what is known of directions fades."""
    max_directions: int = 64
    """Directions kept per side of a matrix, and columns of a sketch at most; computing time per step is
    proportional to them. In a large model they can leave bytes unused that `compression` allows."""
    one_sided_above: int = 2**16
    """Entries above which a matrix has directions on its longer side only, a quarter of `max_directions`; its
    other side stays whole. That is cheaper to compute and keeps more of a gradient, for more bytes."""
    wire_dtype: Literal["float32", "float16"] = "float16"
    """Precision of all sums on the wire; what a worker rounds away stays in its residual."""
    seed: int = 0
    """Seed of the sketches, equal on all ranks."""
    warmup_steps: int = 0
    """Steps at the start that exchange the whole gradient, in the precision of the wire but for the first."""

    def __post_init__(self) -> None:
        """Check the fields."""
        FactorConfig.__post_init__(self)
        checks = {
            "compression": (1 <= self.compression < math.inf, "at least 1"),
            "refresh_interval": (self.refresh_interval >= 1, "at least 1"),
            "refresh_share": (0 < self.refresh_share < 1, "between 0 and 1"),
            "direction_decay": (0 < self.direction_decay < 1, "between 0 and 1"),
            "max_directions": (self.max_directions >= 1, "at least 1"),
            "one_sided_above": (self.one_sided_above >= 0, "at least 0"),
            "seed": (0 <= self.seed < 2**64, "in 0..2**64-1"),
        }
        check_fields(self, checks)

    def directions_of(self, matrix_shape: tuple[int, int]) -> tuple[int | None, int | None]:
        """Return how many directions of rows and of columns a matrix has; None: that side is whole."""
        rows, columns = matrix_shape
        if rows * columns <= self.one_sided_above:
            return min(rows, self.max_directions), min(columns, self.max_directions)
        most = max(1, self.max_directions // 4)
        shorter, longer = sorted(matrix_shape)
        whole = None if shorter > most else shorter
        return (min(longer, most), whole) if rows > columns else (whole, min(longer, most))


def steps_to_next_refresh(step: int, interval: int) -> int:
    """Return how long the directions found in a step are used, steps counted from the first compressed.

    Directions turn fastest at the start of a training.
    """
    return min(interval, max(1, step // 3))


@dataclass(frozen=True, kw_only=True, slots=True)
class ByteBudget:
    """Hold what the bytes per step allow."""

    interval: int
    """Steps from one refresh to the next."""
    ranks: Mapping[str, int]
    """Columns of each compressed parameter's sketch."""
    coefficients: int
    """Exact sums in each step between refreshes."""
    refresh_words: int
    """Values that a refresh sends, both rounds together."""
    overhead_words: int
    """Values that travel in every step besides: dense set and agreement lanes."""

    @classmethod
    def of(cls, config: GsSgdConfig, layout: FlatLayout) -> "ByteBudget":
        """Divide the bytes between refreshes and the steps between them.

        Raises:
            ConfigError: nothing is left after dense set and agreement lanes.
        """
        item = 4 if config.wire_dtype == "float32" else 2
        words = 4 * layout.numel / (config.compression * item)
        overhead = layout.dense_size + _FLAG_AND_LANES
        interval, ranks = _refresh(config, layout, words, overhead)
        refresh = _refresh_words(layout, ranks, overhead)
        between = (words * interval - refresh) / (interval - 1) if interval > 1 else words
        coefficients = min(math.floor(between) - overhead, _most_coefficients(config, layout))
        if coefficients < 1:
            raise ConfigError(
                f"compression={config.compression:g} leaves {item * words:.0f} bytes per step, of which the "
                f"dense set ({layout.dense_size} values) and the agreement lanes take {item * overhead}; "
                f"lower compression below {4 * layout.numel / (item * overhead):.3g}"
            )
        return cls(
            interval=interval,
            ranks=ranks,
            coefficients=coefficients,
            refresh_words=refresh,
            overhead_words=overhead,
        )


_FLAG_AND_LANES = 1 + LANES


def _most_coefficients(config: GsSgdConfig, layout: FlatLayout) -> int:
    """Return how many coefficients the bases hold."""
    total = 0
    for segment in layout.compressed:
        sides = zip(segment.matrix_shape, config.directions_of(segment.matrix_shape), strict=True)
        total += math.prod(size if count is None else count for size, count in sides)
    return total


def _refresh(
    config: GsSgdConfig, layout: FlatLayout, words: float, overhead: int
) -> tuple[int, dict[str, int]]:
    """Choose interval and ranks; one column of every matrix is the least a refresh can do."""
    least = _refresh_words(layout, _ranks(config, layout, 0.0), overhead)
    share = config.refresh_share * words
    interval = max(config.refresh_interval, math.ceil(least / share))
    low, high = 0.0, 2.0  # of a matrix's entries; a sketch of full rank may have more than those
    if _refresh_words(layout, _ranks(config, layout, high), overhead) <= share * interval:
        return interval, _ranks(config, layout, high)
    for _ in range(30):
        middle = (low + high) / 2
        if _refresh_words(layout, _ranks(config, layout, middle), overhead) <= share * interval:
            low = middle
        else:
            high = middle
    return interval, _ranks(config, layout, low)


def _ranks(config: GsSgdConfig, layout: FlatLayout, share: float) -> dict[str, int]:
    """Give every matrix as many columns as use up a share of its entries, both rounds together."""
    ranks = {}
    for segment in layout.compressed:
        rows, columns = segment.matrix_shape
        wanted = round(share * rows * columns / (rows + columns))
        ranks[segment.name] = min(max(wanted, 1), _most_columns(config, segment.matrix_shape))
    return ranks


def _most_columns(config: GsSgdConfig, matrix_shape: tuple[int, int]) -> int:
    """Return how many columns of a sketch are worth their computing."""
    counts = config.directions_of(matrix_shape)
    kept = min(count for count in counts if count is not None)
    # What is found is applied, too; of a large matrix twice as much as can be kept is still cheap.
    return min(*matrix_shape, 2 * kept if None in counts else kept)


def _refresh_words(layout: FlatLayout, ranks: Mapping[str, int], overhead: int) -> int:
    # Both rounds carry lanes; the dense set travels in the first.
    sides = (ranks[s.name] * sum(s.matrix_shape) for s in layout.compressed)
    return sum(sides) + overhead + _FLAG_AND_LANES
