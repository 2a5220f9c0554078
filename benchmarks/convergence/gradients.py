"""Compute what every worker's own gradient would be on its share of a global batch."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from gsdist.workloads import Workload

__all__ = ["Objective", "worker_gradients"]

_WORKERS_AT_ONCE = 16


class Objective(nn.Module):
    """Compute a workload's loss as a module, so that its parameters can be replaced."""

    def __init__(self, workload: Workload, model: nn.Module) -> None:
        super().__init__()
        self.workload = workload
        self.model = model

    def forward(self, *batch: Tensor) -> Tensor:
        """Return the loss of a prepared batch."""
        return self.workload.loss(self.model, batch).total


def worker_gradients(
    objective: Objective, batch: tuple[Tensor, ...], workers: int, *, vectorised: bool
) -> tuple[Tensor, float]:
    """Split a batch evenly among workers and differentiate the mean loss of each part.

    Args:
        objective: loss and model; normalisation must not depend on the batch.
        batch: tensors whose first dimension is divisible by `workers`.
        workers: number of parts.
        vectorised: do many workers in one pass.

    Returns:
        Gradients, float32 `(workers, parameters)` in the order of `named_parameters`, and the mean loss.
    """
    parts = tuple(part.unflatten(0, (workers, -1)) for part in batch)
    if vectorised:
        return _together(objective, parts)
    return _one_by_one(objective, parts)


def _one_by_one(objective: Objective, parts: tuple[Tensor, ...]) -> tuple[Tensor, float]:
    parameters = list(objective.parameters())
    rows, losses = [], []
    for part in zip(*parts, strict=True):
        loss = objective(*part)
        gradients = torch.autograd.grad(loss, parameters)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
        losses.append(loss.detach())
    return torch.stack(rows), float(torch.stack(losses).mean())


def _together(objective: Objective, parts: tuple[Tensor, ...]) -> tuple[Tensor, float]:
    parameters = {name: p.detach() for name, p in objective.named_parameters()}

    def loss(replaced: Mapping[str, Tensor], *part: Tensor) -> Tensor:
        return functional_call(objective, dict(replaced), part)

    both = vmap(
        grad_and_value(loss), in_dims=(None, *(0 for _ in parts)), chunk_size=_WORKERS_AT_ONCE
    )
    gradients, losses = both(parameters, *parts)
    rows = [gradient.flatten(1) for gradient in gradients.values()]
    return torch.cat(rows, dim=1), float(losses.mean())
