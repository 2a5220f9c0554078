"""Make sure that a smaller network answers as the one it came from."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gsdist.errors import UnsupportedSetup

__all__ = ["TOLERANCE", "max_abs_difference", "verify"]

TOLERANCE = 1e-12
"""Bound for the difference of outputs in float64, relative to the largest output if that is above 1."""


def verify(masked: nn.Module, compact: nn.Module, example: tuple[Any, ...]) -> float:
    """Return the largest difference between both networks' answers, in evaluation mode and float64.

    Neither network is changed.

    Raises:
        UnsupportedSetup: they differ by more than `TOLERANCE`.
    """
    difference, largest = _compare(masked, compact, example)
    if not difference <= TOLERANCE * max(1.0, largest):
        raise UnsupportedSetup(
            f"the compact network's answers differ by up to {difference:.3g} from those of the masked one; "
            "channels were removed that are not zero: mask scale and shift of their normalisation, too"
        )
    return difference


def max_abs_difference(first: nn.Module, second: nn.Module, example: tuple[Any, ...]) -> float:
    """Return the largest difference of both networks' answers as `verify` does, whatever it is."""
    return _compare(first, second, example)[0]


def _compare(first: nn.Module, second: nn.Module, example: tuple[Any, ...]) -> tuple[float, float]:
    answers = [list(_answers(network, example)) for network in (first, second)]
    difference = max(float((a - b).abs().max()) for a, b in zip(*answers, strict=True))
    return difference, max(float(answer.abs().max()) for answer in answers[0])


def _answers(network: nn.Module, example: tuple[Any, ...]) -> Iterator[Tensor]:
    exact = copy.deepcopy(network).double().cpu().eval()
    arguments = [
        value.double().cpu() if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in example
    ]
    with torch.no_grad():
        yield from _tensors(exact(*arguments))


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, tuple | list):
        for part in output:
            yield from _tensors(part)
