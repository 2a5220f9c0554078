"""State gs-SGD as a paper would: one function, all workers in one process, no buckets, no wire.

It is written to be read and to check `GsSgdPaperReducer` against. Symbols as in `gsdist.reducers.gs_sgd`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gsdist.sketch import CountSketch, SketchFormat

__all__ = ["ReferenceState", "gs_sgd_paper_step"]


@dataclass(kw_only=True)
class ReferenceState:
    """Hold residual and momentum of all workers, each of shape (workers, coordinates)."""

    residual: Tensor
    momentum: Tensor


def gs_sgd_paper_step(
    gradients: Tensor,
    state: ReferenceState,
    sketch_format: SketchFormat,
    *,
    k: int,
    p1: float,
    p2: float,
    m: float = 0.0,
    nesterov: bool = False,
    masking: bool = True,
) -> Tensor:
    """Run one step and return the sum over workers of what is applied, shape (coordinates,).

    `gradients` has shape (workers, coordinates), float32. `state` is updated in place. With m = 0 this is
    the "post" form, whose momentum is the optimizer's.
    """
    u = m * state.momentum + gradients
    v = state.residual + (gradients + m * u if nesterov else u)

    merged = CountSketch(sketch_format, torch.zeros(sketch_format.table_shape))
    for v_i in v:
        w_i = _largest(v_i, round(p1 * k)) if p1 else torch.arange(v_i.numel())
        merged.encode_sparse(w_i, v_i[w_i].contiguous())

    estimates = merged.estimate(torch.arange(v.shape[1]))
    assert isinstance(estimates, Tensor)
    c = _largest(estimates, round(p2 * k))
    exact_sums = v[:, c].sum(dim=0)
    chosen = _largest(exact_sums, k)
    selected = c[chosen]

    applied = torch.zeros(v.shape[1])
    applied[selected] = exact_sums[chosen]
    state.residual = v.clone()
    state.residual[:, selected] = 0.0
    state.momentum = u
    if masking:
        state.momentum[:, selected] = 0.0
    return applied


def _largest(values: Tensor, count: int) -> Tensor:
    """Return the ascending indices of the largest magnitudes, ties to the lowest index."""
    order = torch.sort(values.abs(), descending=True, stable=True).indices
    return order[:count].sort().values
