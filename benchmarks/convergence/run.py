"""Train one replica on the gradients of emulated workers and count what they send."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from benchmarks.convergence.emulation import EmulatedExchange, MethodConfig, dense_bytes
from benchmarks.convergence.gradients import Objective, worker_gradients
from benchmarks.convergence.workloads import (
    PRESETS,
    Training,
    evaluate,
    open_workload,
    training_batches,
)
from gsdist.errors import NonFiniteGradient
from gsdist.reducers import CompressedConfig
from gsdist.sketch.select import top_k

__all__ = ["Curves", "train", "trained_steps"]

_SQUARE_DECAY = 0.95
"""AdamW's decay of the averaged square of the gradient."""
_DECOUPLED_DECAY = 0.1
"""AdamW's weight decay."""


@dataclass(kw_only=True, slots=True)
class Curves:
    """Collect what a run shows on its way."""

    loss: list[float | None] = field(default_factory=list)
    """Mean training loss per step, before its update; None where it is not finite."""
    bytes: list[float] = field(default_factory=list)
    """Bytes on the busiest link up to and with each step."""
    energy: list[tuple[int, float]] = field(default_factory=list)
    """(step, squared norm applied over that of the exact top k of the sum, for as many coordinates)."""


def train(training: Training, config: MethodConfig, *, workers: int, seed: int) -> dict[str, Any]:
    """Run one training; return its results, ready for JSON.

    Initial weights and the order of the data depend on the seed alone. A run whose gradient stops being
    finite ends there and says so.
    """
    workload = open_workload(training)
    torch.manual_seed(seed)
    model = workload.build_model()
    objective = Objective(workload, model)
    curves, diverged = Curves(), False
    try:
        for _ in trained_steps(training, config, objective, curves, workers=workers, seed=seed):
            pass
    except NonFiniteGradient:
        diverged = True
    metrics = evaluate(training, workload, model)
    dense = len(curves.bytes) * dense_bytes(dict(model.named_parameters()), workers)
    sampled = [energy for _, energy in curves.energy]
    return {
        "accuracy": metrics["accuracy"],
        "loss": _finite(metrics["loss"]),
        "wire_compression": dense / curves.bytes[-1] if curves.bytes else None,
        "busiest_link_bytes": curves.bytes[-1] if curves.bytes else 0.0,
        "energy": sum(sampled) / len(sampled) if sampled else None,
        "diverged": diverged,
        "curves": asdict(curves),
    }


def trained_steps(
    training: Training,
    config: MethodConfig,
    objective: Objective,
    curves: Curves,
    *,
    workers: int,
    seed: int,
) -> Iterator[None]:
    """Train the model step by step, yielding after each."""
    parameters = list(objective.model.parameters())
    named = dict(objective.model.named_parameters())
    exchange = EmulatedExchange(config, named, workers, momentum=training.momentum)
    left_to_optimizer = training.momentum if exchange.momentum is None else 0.0
    optimizer = _optimizer(training, parameters, left_to_optimizer)
    schedule = _schedule(training, optimizer)
    batches = training_batches(training, objective.workload, seed)
    local_batch = training.global_batch // workers
    vectorised = local_batch <= PRESETS[training.workload].vectorised_up_to
    sizes = [parameter.numel() for parameter in parameters]
    for step, batch in zip(range(training.steps), batches, strict=False):
        gradients, loss = worker_gradients(objective, batch, workers, vectorised=vectorised)
        average = _exchange(exchange, gradients, curves, _samples_energy(training, config, step))
        for parameter, part in zip(parameters, average.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter)
        if training.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, training.clip_norm)
        optimizer.step()
        schedule.step()
        sent = curves.bytes[-1] if curves.bytes else 0.0
        curves.bytes.append(sent + exchange.last_bytes())
        curves.loss.append(_finite(round(loss, 5)))
        yield


def _optimizer(training: Training, parameters: list[Tensor], momentum: float) -> Optimizer:
    if PRESETS[training.workload].optimizer == "sgd":
        return SGD(parameters, lr=training.learning_rate, momentum=momentum)
    return AdamW(
        parameters,
        lr=training.learning_rate,
        betas=(momentum, _SQUARE_DECAY),
        weight_decay=_DECOUPLED_DECAY,
    )


def _schedule(training: Training, optimizer: Optimizer) -> LRScheduler:
    warmup = PRESETS[training.workload].lr_warmup_steps
    cosine = CosineAnnealingLR(optimizer, T_max=training.steps - warmup)
    if not warmup:
        return cosine
    rising = LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup - 1)
    return SequentialLR(optimizer, [rising, cosine], milestones=[warmup])


def _finite(value: float) -> float | None:
    """Return a number that JSON can hold."""
    return value if math.isfinite(value) else None


def _samples_energy(training: Training, config: MethodConfig, step: int) -> int | None:
    """Return the step if its energy is to be measured."""
    if not isinstance(config, CompressedConfig) or step < config.warmup_steps:
        return None
    return step if (step + 1) % training.energy_every == 0 else None


def _exchange(
    exchange: EmulatedExchange, gradients: Tensor, curves: Curves, sampled_step: int | None
) -> Tensor:
    if sampled_step is None:
        return exchange.average(gradients)
    corrected = exchange.corrected_sum(gradients)
    average = exchange.average(gradients)
    applied = exchange.compressed_part(average) * exchange.workers
    curves.energy.append((sampled_step, round(_energy(applied, corrected), 5)))
    return average


def _energy(applied: Tensor, corrected: Tensor) -> float:
    """Compare what was applied with the best choice of as many coordinates."""
    best = corrected[top_k(corrected, int(applied.count_nonzero()))]
    return float(applied.double().square().sum() / best.double().square().sum())
