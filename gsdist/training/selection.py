"""Keep the weights of the best evaluation."""

from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["BestWeights"]


class BestWeights:
    """Remember a model as it was when a metric was highest, the first time on ties.

    Args:
        metric: name of the metric; None: nothing is remembered.
    """

    def __init__(self, metric: str | None) -> None:
        self._metric = metric
        self._results: dict[str, float] = {}
        self._weights: dict[str, Any] = {}

    def offer(self, results: Mapping[str, float], model: nn.Module) -> None:
        """Take note of an evaluation of the model."""
        metric = self._metric
        if metric and (not self._results or results[metric] > self._results[metric]):
            self._results = dict(results)
            self._weights = {name: value.clone() for name, value in model.state_dict().items()}

    def restore(self, model: nn.Module) -> dict[str, float]:
        """Make the model the best one and return its results; nothing where nothing is remembered."""
        if self._results:
            model.load_state_dict(self._weights)
        return dict(self._results)

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered."""
        return {"results": self._results, "weights": self._weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._results, self._weights = dict(state["results"]), dict(state["weights"])
