"""Say how sure a ratio of medians is (Efron & Tibshirani, An Introduction to the Bootstrap, chapter 13)."""

from collections.abc import Sequence

import numpy as np

__all__ = ["interval_of_ratio"]

_DRAWS = 4000
_SEED = 0


def interval_of_ratio(
    one: Sequence[float], other: Sequence[float], *, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile interval of median(one) / median(other), from repetitions in pairs.

    Repetition i of both met the same conditions, so pairs are drawn; what has no partner is left out.
    """
    pairs = np.array(list(zip(one, other, strict=False)))
    drawn = np.random.default_rng(_SEED).integers(len(pairs), size=(_DRAWS, len(pairs)))
    medians = np.median(pairs[drawn], axis=1)
    low, high = np.quantile(
        medians[:, 0] / medians[:, 1], ((1 - level) / 2, (1 + level) / 2)
    ).tolist()
    return low, high
