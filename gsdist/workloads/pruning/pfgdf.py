"""Keep the filters whose norms lie near the layer's mean: PFGDF, reconstructed.

Source: Xu et al., Pruning Filter via Gaussian Distribution Feature, arXiv 2006.12963. Only the abstract was
at hand. It treats a layer's filters as draws from a normal distribution, keeps those in a smaller
interval around its mean and finds the interval layer by layer. Statistic, grid and tolerance are this
module's choice.

| symbol | here |
| --- | --- |
| x_i | `norms`: L1 norms of a layer's filters |
| delta_l | `interval`: kept are filters with abs(x_i - mean) <= delta_l * standard deviation |
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gsdist.errors import ConfigError

__all__ = ["INTERVALS", "closeness", "kept_share", "parse_intervals", "search_intervals"]

INTERVALS = tuple(round(0.1 * step, 1) for step in range(2, 21))
"""Intervals that the search tries, smallest first."""


def closeness(norms: Tensor, tails: str) -> Tensor:
    """Return how near each norm is to the mean, in standard deviations, as a score `(size,)` at most 0.

    A filter outside the interval delta has a score below -delta. With tails "low" norms above the mean
    count as near. A layer with filters that are zero has been pruned before: they are infinitely far, all
    others near, or the rest would be narrowed again and again.
    """
    gone = norms == 0
    if gone.any():
        return torch.zeros_like(norms).masked_fill_(gone, -math.inf)
    deviation = norms.std(correction=0)
    centred = (norms - norms.mean()) / deviation if deviation > 0 else torch.zeros_like(norms)
    return -centred.abs() if tails == "both" else centred.clamp(max=0.0)


def kept_share(interval: float) -> float:
    """Return the share of a normal distribution within so many standard deviations of its mean."""
    return math.erf(interval / math.sqrt(2))


def parse_intervals(entries: Sequence[str]) -> dict[str, float]:
    """Return interval by layer of entries like "stages.0.conv1=0.7".

    Raises:
        ConfigError: an entry of another form, or a layer twice.
    """
    found: dict[str, float] = {}
    for entry in entries:
        layer, _, text = entry.rpartition("=")
        try:
            interval = float(text)
        except ValueError:
            interval = math.nan
        if not layer or layer in found or not interval > 0:
            raise ConfigError(
                f"intervals has the entry {entry!r}; expected LAYER=DEVIATIONS with a positive number, each "
                "layer once"
            )
        found[layer] = interval
    return found


def search_intervals(
    layers: Sequence[str],
    accuracy_with: Callable[[dict[str, float]], float],
    *,
    least: float,
    intervals: Sequence[float] = INTERVALS,
) -> dict[str, float]:
    """Find for each layer, in order, the smallest interval that keeps the accuracy.

    Args:
        layers: names, from input to output.
        accuracy_with: prunes the named layers to their intervals, lets the network recover and measures it.
            Begins each time with the network as it was found with the layers before.
        least: accuracy that is enough.
        intervals: to try, ascending; a layer for which none is enough stays whole.

    Returns:
        Intervals of the layers that are pruned.
    """
    found: dict[str, float] = {}
    for layer in layers:
        for interval in intervals:
            if accuracy_with({**found, layer: interval}) >= least:
                found[layer] = interval
                break
    return found
