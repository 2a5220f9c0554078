"""Say what is pruned, by which criterion, when, and how gently."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from gsdist.compaction import Layout
from gsdist.errors import ConfigError
from gsdist.workloads.pruning.pfgdf import parse_intervals
from gsdist.workloads.weights import fix_weights

__all__ = ["PruningConfig", "RateSchedule", "Target"]

Criterion = Literal["l1", "l2", "fpgm", "scale", "cpmc", "gaussian"]
Granularity = Literal["filter", "weight"]
HardSchedule = Literal["constant", "cubic", "cosine"]
RateSchedule = Literal["constant", "exponential", "cubic"]
Scope = Literal["local", "global"]
SoftnessSchedule = Literal["exponential", "linear", "cosine"]
Tails = Literal["both", "low"]
Target = Literal["rate", "macs", "parameters"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningConfig:
    """Configure a pruner; the presets set what makes a method. Equal on all ranks."""

    rate: float = 0.4
    """Share to remove, above 0 and below 1, of what `target` names."""
    target: Target = "rate"
    """What the rate is a share of: each layer's (or with scope global, all) channels, multiply-accumulates,
    or parameters. The latter two are counted exactly."""
    layout: Layout = "scatter"
    """Convolutions whose outputs are added up: not pruned (internal), pruned each on its own (scatter), or
    all that are added up alike (stage). `gsdist compact` then removes as much."""
    granularity: Granularity = "filter"
    """Prune whole filters, or single weights of convolutions, which makes no network smaller."""
    criterion: Criterion = "l2"
    """What is unimportant: filters of small norm (l1, l2), near all others (fpgm), with a small scale in
    the normalisation behind (scale), cheap to lose (cpmc), or far from the layer's mean (gaussian)."""
    scope: Scope = "local"
    """Rank within each layer, or over all of them."""
    rate_schedule: RateSchedule = "constant"
    """How the rate grows over the run."""
    rate_snap: float = 0.95
    """Fraction of the run after which the rate is the full one."""
    softness: float = 0.0
    """What pruned filters are multiplied by at first; 0 zeroes them."""
    softness_schedule: SoftnessSchedule = "exponential"
    """How that falls over the run."""
    softness_end: float = 1e-5
    """exponential: what it would be at the end."""
    softness_cutoff: float = 0.9
    """Fraction of the run after which it is 0."""
    hard_share: float = 0.0
    """Share of the pruned filters that may not grow back, at the end of its schedule."""
    hard_schedule: HardSchedule = "constant"
    """How that share grows over the run."""
    hard_snap: float = 1.0
    """Fraction of the run after which it is the full one."""
    scale_norm: bool = True
    """Treat scale and shift of the normalisation like the filters in front of it. Without, nothing can be
    removed in the end: a shift is left over."""
    skip_shortcuts: bool = False
    """Leave out the 1x1 convolutions of shortcuts."""
    mask_at_begin: bool = False
    """Prune before the first epoch, too; from fresh weights that kills filters for good."""
    select_once: bool = False
    """Prune once and for all, at `select_at`, instead of anew after every epoch."""
    select_at: float = 0.0
    """Fraction of the run; 0 is before the first step."""
    sparsity: float = 0.0
    """Weight of the sum of absolute scales of all normalisations in the loss until `select_at`."""
    min_keep: float = 0.1
    """scope global: share of each layer that is never pruned."""
    cost_weight: float = 0.5
    """cpmc: weight of the multiply-accumulates that a channel costs."""
    size_weight: float = 0.5
    """cpmc: weight of the parameters that a channel costs."""
    tails: Tails = "both"
    """gaussian: prune on both sides of the mean, or below it only."""
    intervals: tuple[str, ...] | None = None
    """gaussian: LAYER=DEVIATIONS ..., keep what is within so many standard deviations of that layer's mean
    and leave all other layers whole, whatever the rate is; `gsdist pfgdf` finds them."""
    pretrained: Path | None = None
    """File of the weights to begin with, as --save-model writes it; unset: fresh weights."""
    pretrained_sha256: str | None = None
    """What the file's SHA-256 must be; unset: it is computed and becomes part of the settings."""
    evaluate_unmasked: bool = False
    """Evaluate before pruning, too, as "unmasked_..."."""
    compact_at: float | None = None
    """Fraction of the run after which the network is made smaller and training goes on."""

    def __post_init__(self) -> None:
        """Check ranges and combinations, and the file of weights.

        Raises:
            ConfigError: an unknown name, a value out of range, or a combination without sense.
            CheckpointError: the file cannot be read or has another hash.
        """
        for name, choices in _CHOICES.items():
            _require(getattr(self, name) in choices, name, getattr(self, name), f"one of {choices}")
        _require(0 < self.rate < 1, "rate", self.rate, "above 0 and below 1")
        _require(0 < self.softness_end < 1, "softness_end", self.softness_end, "in (0, 1)")
        for name in ("softness", "softness_cutoff", "rate_snap", "hard_share", "hard_snap"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "in 0..1")
        for name in ("min_keep", "select_at"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "in [0, 1)")
        for name in ("sparsity", "cost_weight", "size_weight"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        _require(
            self.granularity == "filter" or (self.criterion in ("l1", "l2") and self.target == "rate"),
            "granularity", self.granularity, "filter with this criterion or target",
        )  # fmt: skip
        _require(
            self.granularity == "filter" or self.compact_at is None,
            "compact_at", self.compact_at, "unset when single weights are pruned",
        )  # fmt: skip
        _require(
            self.compact_at is None or 0 < self.compact_at < 1,
            "compact_at", self.compact_at, "in (0, 1), or unset",
        )  # fmt: skip
        _require(
            self.compact_at is None or (self.select_once and self.compact_at > self.select_at),
            "compact_at", self.compact_at, "after select_at, with select_once; what is gone cannot return",
        )  # fmt: skip
        _require(
            not self.select_once or self.hard_share == 1,
            "hard_share", self.hard_share, "1 with select_once",
        )  # fmt: skip
        _require(
            self.compact_at is None or self.scale_norm,
            "compact_at", self.compact_at, "unset without scale_norm",
        )  # fmt: skip
        _require(
            self.intervals is None or (self.criterion == "gaussian" and self.target == "rate"),
            "intervals", self.intervals, 'unset with another criterion than gaussian or a target',
        )  # fmt: skip
        if self.intervals is not None:
            parse_intervals(self.intervals)
        fix_weights(self, "pretrained", "pretrained_sha256")


_CHOICES = {
    "target": get_args(Target),
    "layout": get_args(Layout),
    "granularity": get_args(Granularity),
    "criterion": get_args(Criterion),
    "scope": get_args(Scope),
    "rate_schedule": get_args(RateSchedule),
    "softness_schedule": get_args(SoftnessSchedule),
    "hard_schedule": get_args(HardSchedule),
    "tails": get_args(Tails),
}


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{name}={value!r}; expected {expected}")
