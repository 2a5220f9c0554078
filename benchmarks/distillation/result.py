"""Summarise what one method achieved over all seeds."""

import statistics
from dataclasses import dataclass
from typing import Any

__all__ = ["Result"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Hold one method's accuracies in percent, in the order of the seeds."""

    accuracies: list[float]
    compression: list[float]
    """Dense over payload bytes of each whole run."""
    seconds: list[float]
    """Of training, without evaluation and checkpoints."""

    @property
    def mean(self) -> float:
        """Return the mean accuracy."""
        return statistics.fmean(self.accuracies)

    def wins(self, baseline: "Result") -> int:
        """Count the seeds in which it beat the baseline of the same seed."""
        pairs = zip(self.accuracies, baseline.accuracies, strict=True)
        return sum(own > other for own, other in pairs)

    def to_mapping(self, baseline: "Result") -> dict[str, Any]:
        """Return mean, spread and how often it beat the baseline."""
        spread = statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None
        return {
            "mean": self.mean,
            "sd": spread,
            "wins": self.wins(baseline),
            "accuracies": self.accuracies,
            "compression": statistics.fmean(self.compression),
            "seconds": statistics.fmean(self.seconds),
        }
