"""Predict what each exchange method would cost, and choose one."""

from gsdist.planner.candidates import BASELINE, CANDIDATES, Candidate
from gsdist.planner.measure import Measured, measure_alone, measure_in_group
from gsdist.planner.plan import Plan, make_plan, simulate
from gsdist.planner.prediction import (
    Prediction,
    Situation,
    break_even_bandwidth,
    choose,
    predict,
)
from gsdist.planner.shapes import transformer_shapes
from gsdist.planner.simulation import Variation
from gsdist.planner.step_factors import StepFactor, step_factor
from gsdist.planner.traffic import cost_per_step

__all__ = [
    "BASELINE",
    "CANDIDATES",
    "Candidate",
    "Measured",
    "Plan",
    "Prediction",
    "Situation",
    "StepFactor",
    "Variation",
    "break_even_bandwidth",
    "choose",
    "cost_per_step",
    "make_plan",
    "measure_alone",
    "measure_in_group",
    "predict",
    "simulate",
    "step_factor",
    "transformer_shapes",
]
