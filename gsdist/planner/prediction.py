"""Predict what training with each exchange method would take, from the model alone.

A step takes computing, the method's own computing, what it sends (`cost_model`) and what trial exchanges were
seen to take beside, one after the other, except that a dense exchange hides behind the backward pass. The
slowest worker decides: where local computing was not measured on all of them at once, it is taken to be
`SKEW` times that of one.

Sources: alpha-beta model of collectives; gradient compression pays only where the link is slow (Agarwal et
al., arXiv 2103.00543, section 4), so dense exchange is a candidate like all others.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from gsdist.collectives.cost_model import Cost, Link
from gsdist.planner.candidates import Candidate
from gsdist.planner.measure import Measured
from gsdist.planner.step_factors import StepFactor, step_factor
from gsdist.planner.traffic import Step, cost_per_step, mean_seconds, steps_of
from gsdist.reducers import DenseConfig, FlatLayout

__all__ = [
    "HIDDEN_SHARE",
    "SKEW",
    "Prediction",
    "Situation",
    "break_even_bandwidth",
    "choose",
    "predict",
]

SKEW = 1.15
"""The slowest worker's local computing over that of one alone, where only the latter is known: about what
ranks on shared processors showed in the exchange suite's cells above 10 million parameters."""
_MARGIN = 0.2
"""By how much a compressing method must be ahead to be chosen: predictions are trusted that far."""
HIDDEN_SHARE = 2 / 3
"""Of a step's computing, what a dense exchange hides behind: the backward pass."""
_SLOWEST, _FASTEST = 1e3, 1e13
"""Bandwidths, in bytes per second, between which a break-even is looked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Situation:
    """Say what is trained where."""

    ranks: int
    link: Link
    compute_seconds: float
    """Forward, backward and optimizer of one step, without any exchange."""
    skew: float = SKEW
    """The slowest worker's local computing over that given; 1 if it is the slowest one's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """Hold what is predicted of one method."""

    candidate: Candidate
    cost: Cost
    """Per step, on the busiest link."""
    compression: float
    """Bytes of a dense float32 exchange over these."""
    measured: Measured
    step_seconds: float
    step_factor: StepFactor | None
    """Steps over those of dense training to the same loss; None where nothing was measured."""

    @property
    def name(self) -> str:
        """Return the method's name."""
        return self.candidate.name

    @property
    def quality_seconds(self) -> float | None:
        """Return the time that replaces one step of dense training."""
        return None if self.step_factor is None else self.step_seconds * self.step_factor.factor


def predict(
    candidate: Candidate, layout: FlatLayout, measured: Measured, situation: Situation
) -> Prediction:
    """Predict one method.

    Raises:
        ConfigError: the method cannot serve this layout with its settings.
    """
    cost = cost_per_step(candidate.config, layout, situation.ranks)
    dense = cost_per_step(DenseConfig(), layout, situation.ranks)
    compression = dense.bytes / cost.bytes if cost.bytes else 1.0
    return Prediction(
        candidate=candidate,
        cost=cost,
        compression=compression,
        measured=measured,
        step_seconds=_step_seconds(
            candidate,
            steps_of(candidate.config, layout, situation.ranks),
            measured,
            situation,
        ),
        step_factor=StepFactor(factor=1.0, measured=True)
        if candidate.is_dense
        else step_factor(candidate.measured_as, compression, situation.ranks),
    )


def _step_seconds(
    candidate: Candidate, steps: Sequence[Step], measured: Measured, situation: Situation
) -> float:
    wire = mean_seconds(steps, situation.ranks, situation.link)
    exchange = wire + situation.skew * measured.local_seconds + measured.unmodelled_seconds
    hidden = HIDDEN_SHARE * situation.compute_seconds if candidate.is_dense else 0.0
    return situation.compute_seconds + max(0.0, exchange - hidden)


def choose(predictions: Iterable[Prediction]) -> Prediction:
    """Choose the method that reaches dense quality first; a dense one unless another is ahead by a margin.

    Methods whose quality was never measured, and those nobody wants unasked, are not chosen. There must be
    a dense one.
    """
    known = [
        (one.quality_seconds, one)
        for one in predictions
        if one.candidate.offered and one.quality_seconds is not None
    ]
    dense = min((pair for pair in known if pair[1].candidate.is_dense), key=lambda pair: pair[0])
    best = min(known, key=lambda pair: pair[0])
    return best[1] if best[0] <= (1 - _MARGIN) * dense[0] else dense[1]


def break_even_bandwidth(
    candidate: Candidate,
    against: Candidate,
    layout: FlatLayout,
    measured: Mapping[str, Measured],
    situation: Situation,
) -> float | None:
    """Return the bandwidth, in bytes per second, below which a method beats a dense one in time to quality.

    None: it never does, or nothing is known of its quality; infinity: it always does.
    """
    steps = {
        one.name: steps_of(one.config, layout, situation.ranks) for one in (candidate, against)
    }
    factor = predict(candidate, layout, measured[candidate.name], situation).step_factor
    if factor is None:
        return None

    def ahead(bandwidth: float) -> bool:
        there = replace(situation, link=replace(situation.link, bandwidth=bandwidth))
        mine, theirs = (
            _step_seconds(one, steps[one.name], measured[one.name], there)
            for one in (candidate, against)
        )
        return mine * factor.factor < theirs

    if not ahead(_SLOWEST):
        return None
    if ahead(_FASTEST):
        return math.inf
    low, high = _SLOWEST, _FASTEST
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if ahead(middle) else (low, middle)
    return low
