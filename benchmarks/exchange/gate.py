"""Refuse to time a method that is wrong: equal bits on all ranks, and nothing lost on integers.

Integer gradients have sums that are exact in float32 in any order. What all ranks offered (residual and
gradient) must equal what is applied plus what they keep. Vectors of millions of entries are compared by
weighted sums of 256 stretches, so that only those travel between the ranks.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.exchange.driver import Driver
from benchmarks.exchange.methods import METHODS, ORIGINAL, tolerance_of
from benchmarks.exchange.referee import Referee
from gsdist.errors import GsdistError
from gsdist.reducers import GTopKConfig

__all__ = ["find_fault", "mass_fault"]

_STEPS = 2
_STRETCHES = 256
_LARGEST = 1000


def find_fault(
    method: str,
    density: float,
    shapes: Mapping[str, Sequence[int]],
    captured: Sequence[Tensor],
    group: dist.ProcessGroup,
    referee: Referee,
) -> str | None:
    """Say what is wrong with a method on these shapes, alike on every rank; None: nothing."""
    try:
        driver = Driver(METHODS[method](density), shapes, group)
        fault = (
            _differs_from_ours(driver, density, shapes, captured, group)
            if method == ORIGINAL
            else mass_fault(driver, tolerance_of(method), group, referee)
        )
    except GsdistError as error:
        fault = f"{type(error).__name__}: {error}"
    faults = referee.meet(fault).payloads
    return next((one for one in faults if one is not None), None)


def mass_fault(
    driver: Driver, tolerance: float, group: dist.ProcessGroup, referee: Referee
) -> str | None:
    """Exchange integers; say what is lost or differs between ranks, alike on every rank."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    numel = driver.buffer.numel()
    weights = torch.randint(1, 8, (numel,), generator=torch.Generator().manual_seed(7)).float()
    kept = torch.zeros(_STRETCHES, dtype=torch.float64)
    for step in range(_STEPS):
        generator = torch.Generator().manual_seed(100 * step + rank)
        gradient = torch.randint(-_LARGEST, _LARGEST + 1, (numel,), generator=generator).float()
        driver.buffer.copy_(gradient)
        driver.exchange()
        offered = kept + _stretch_sums(gradient, weights)
        kept = _stretch_sums(driver.residual(), weights)
        applied = _stretch_sums(driver.buffer, weights)
        report = {
            "digest": hashlib.sha256(driver.buffer.numpy().data).hexdigest(),
            "unaccounted": (offered - applied - kept).tolist(),
            "scale": float(torch.linalg.vector_norm(gradient)) * 8 / _STRETCHES**0.5,
        }
        fault = _judge([report, *referee.meet(report).payloads], tolerance)
        if fault is None and not _applies_anything(driver):
            fault = "nothing but the dense set is exchanged"
        if fault:
            return f"step {step} of {ranks} ranks: {fault}"
    return None


def _judge(reports: list[dict[str, Any]], tolerance: float) -> str | None:
    own, *everyone = reports
    if any(report["digest"] != own["digest"] for report in everyone):
        return "ranks hold different results"
    shares = [report["unaccounted"] for report in everyone]
    lost = torch.tensor(shares, dtype=torch.float64).sum(dim=0)
    scale = sum(report["scale"] for report in everyone)
    worst = float(lost.abs().max()) / scale
    return None if worst <= tolerance else f"{worst:.1e} of a sum is lost or invented"


def _applies_anything(driver: Driver) -> bool:
    parts = driver.compressed_parts()
    return not parts or any(bool(part.any()) for part in parts)


def _stretch_sums(vector: Tensor, weights: Tensor) -> Tensor:
    return torch.stack(
        [part.sum(dtype=torch.float64) for part in (vector * weights).tensor_split(_STRETCHES)]
    )


def _differs_from_ours(
    driver: Driver,
    density: float,
    shapes: Mapping[str, Sequence[int]],
    captured: Sequence[Tensor],
    group: dist.ProcessGroup,
) -> str | None:
    """Compare the original gTop-k, which loses mass, with gsdist's on gradients without ties."""
    config = GTopKConfig(density=density, warmup_steps=0, dropped="forget")
    ours = Driver(config, shapes, group)
    for step, gradient in enumerate(captured[:_STEPS]):
        for one in (driver, ours):
            one.buffer.copy_(gradient)
            one.exchange()
        if not torch.equal(driver.buffer, ours.buffer):
            return f"step {step}: the result is not that of g-top-k that forgets"
    return None
