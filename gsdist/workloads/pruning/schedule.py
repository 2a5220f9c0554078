"""Say how much is pruned after each epoch, and how gently.

Sources: SFP (He et al., IJCAI 2018), ASFP (He et al., 2019), SRFP and ASRFP (Cai et al., arXiv
2010.09498), HFP and GHFP (Cai et al., arXiv 2011.03170). The formulas are those of their authors' code;
the published text of the last two was not at hand, and may differ in cut-offs.

| symbol | here |
| --- | --- |
| t, T | `event`, `total`: epochs done before this one, epochs of the run |
| P, P_t | `rate` of the settings, of the step: share of filters that is pruned |
| D = 1/8 | `_QUARTER_LEFT`: fraction of the run after which 3/4 of the rate are reached |
| alpha_t, alpha_0 | `softness` of the step, of the settings: factor of pruned filters |
| sigma | `softness_end` |
| lambda_t | `hard_share`: share of the pruned filters that cannot grow back |
"""

import math
from dataclasses import dataclass

from gsdist.workloads.pruning.config import PruningConfig

__all__ = ["Step", "step_at"]

_QUARTER_LEFT = 1 / 8
_HARD_ANNEALING = 0.9
"""cosine: fraction of the run after which the hard share is the full one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Say what happens after one epoch."""

    rate: float
    softness: float
    hard_share: float


def step_at(config: PruningConfig, event: int, total: int, *, rate: float | None = None) -> Step:
    """Return the step after epoch `event` (from 0) of `total`; a pure function.

    `rate` takes the place of the configured one, where that is a share of something else than filters.
    """
    final = config.rate if rate is None else rate
    if event >= total - 1:
        return Step(rate=final, softness=0.0, hard_share=config.hard_share)
    return Step(
        rate=final * _rate_share(config, event, total),
        softness=_softness(config, event, total),
        hard_share=config.hard_share * _hard_share(config, event, total),
    )


def _rate_share(config: PruningConfig, event: int, total: int) -> float:
    if config.rate_schedule == "constant" or event >= config.rate_snap * total:
        return 1.0
    if config.rate_schedule == "cubic":
        return _cubic(event, total)
    return 1.0 - math.exp(-math.log(4) * event / (_QUARTER_LEFT * total))


def _softness(config: PruningConfig, event: int, total: int) -> float:
    start, end = config.softness, config.softness_end
    if start == 0 or event >= config.softness_cutoff * total:
        return 0.0
    if config.softness_schedule == "linear":
        return start * (1 - event / (total - 1))
    if config.softness_schedule == "cosine":
        return start * 0.5 * (1 + math.cos(math.pi * event / (total - 1)))
    return start * math.exp(math.log(end / (start + 0.01 * end)) * event / total)


def _hard_share(config: PruningConfig, event: int, total: int) -> float:
    if config.hard_schedule == "constant" or event >= config.hard_snap * total:
        return 1.0
    if config.hard_schedule == "cubic":
        return _cubic(event, total)
    annealed = min(1.0, event / (_HARD_ANNEALING * total))
    return 0.5 * (1 - math.cos(math.pi * annealed))


def _cubic(event: int, total: int) -> float:
    return float(1 - (1 - (event + 1) / total) ** 3)
