"""Offer the networks that the workloads train."""

from gsdist.models.registry import Normalization, build_model, check_model, model_names

__all__ = ["Normalization", "build_model", "check_model", "model_names"]
