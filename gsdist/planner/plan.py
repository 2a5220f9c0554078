"""Compare all methods in one situation and choose the one that reaches dense quality first."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gsdist.errors import ConfigError
from gsdist.planner.candidates import BASELINE, CANDIDATES, Candidate
from gsdist.planner.measure import Measured
from gsdist.planner.prediction import (
    Prediction,
    Situation,
    break_even_bandwidth,
    choose,
    predict,
)
from gsdist.planner.simulation import Variation, simulate_step
from gsdist.reducers import FlatLayout, lay_out

__all__ = ["Plan", "make_plan", "simulate"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Hold what is predicted of every method that can serve a model, in the order of time to quality."""

    situation: Situation
    num_parameters: int
    predictions: tuple[Prediction, ...]
    """Those whose quality was never measured come last."""
    break_even: Mapping[str, float | None]
    """Bandwidth, in bytes per second, below which each method beats dense bfloat16."""
    unfit: Mapping[str, str]
    """Methods that cannot serve this model, and why."""

    @property
    def chosen(self) -> Prediction:
        """Return the one to use."""
        return choose(self.predictions)

    @property
    def baseline(self) -> Prediction:
        """Return what is predicted of dense bfloat16."""
        return next(one for one in self.predictions if one.name == BASELINE)

    def to_mapping(self) -> dict[str, Any]:
        """Return everything as JSON knows it; an infinite break-even is "always"."""
        methods = [
            {
                "name": one.name,
                "config": asdict(one.candidate.config),
                "bytes": one.cost.bytes,
                "messages": one.cost.messages,
                "compression": one.compression,
                **asdict(one.measured),
                "step_seconds": one.step_seconds,
                "step_factor": asdict(one.step_factor) if one.step_factor else None,
                "quality_seconds": one.quality_seconds,
                "pays_below_bytes_per_second": "always"
                if self.break_even[one.name] == math.inf
                else self.break_even[one.name],
            }
            for one in self.predictions
        ]
        return {
            "situation": asdict(self.situation),
            "num_parameters": self.num_parameters,
            "methods": methods,
            "unfit": dict(self.unfit),
            "chosen": self.chosen.name,
        }


def make_plan(
    shapes: Mapping[str, Sequence[int]],
    measured: Mapping[str, Measured],
    situation: Situation,
    candidates: Iterable[Candidate] = CANDIDATES.values(),
) -> Plan:
    """Predict all methods for a model whose parameters have these shapes.

    `measured` holds what was measured of each method, by name; methods it lacks do not fit.
    """
    parameters = _parameters(shapes)
    layouts: dict[str, FlatLayout] = {}
    named = {one.name: one for one in candidates}
    predictions, unfit = [], {}
    for name, candidate in named.items():
        if name not in measured:
            unfit[name] = "it cannot serve these parameters with its default settings"
            continue
        layouts[name] = lay_out(candidate.config, parameters)
        try:
            predictions.append(predict(candidate, layouts[name], measured[name], situation))
        except ConfigError as error:
            unfit[name] = str(error)
    baseline = named[BASELINE]
    break_even = {
        one.name: None
        if named[one.name].is_dense
        else break_even_bandwidth(named[one.name], baseline, layouts[one.name], measured, situation)
        for one in predictions
    }
    return Plan(
        situation=situation,
        num_parameters=sum(parameter.numel() for parameter in parameters.values()),
        predictions=tuple(sorted(predictions, key=_by_quality)),
        break_even=break_even,
        unfit=unfit,
    )


def simulate(
    plan: Plan, shapes: Mapping[str, Sequence[int]], variation: Variation
) -> dict[str, float]:
    """Return the simulated seconds of a step, by name, of the plan's methods of known quality."""
    parameters = _parameters(shapes)
    return {
        one.name: simulate_step(
            one.candidate,
            lay_out(one.candidate.config, parameters),
            one.measured.local_seconds,
            plan.situation,
            variation,
        )
        for one in plan.predictions
        if one.step_factor is not None
    }


def _parameters(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return parameters of these shapes on no device."""
    return {
        name: nn.Parameter(torch.empty(tuple(shape), device="meta"))
        for name, shape in shapes.items()
    }


def _by_quality(prediction: Prediction) -> tuple[bool, float]:
    quality = prediction.quality_seconds
    return quality is None, prediction.step_seconds if quality is None else quality
