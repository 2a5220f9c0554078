"""Drop entries, faster on a CPU than torch does."""

import torch
from torch import Tensor

__all__ = ["dropout"]

_LEVELS = 1 << 16


def dropout(values: Tensor, probability: float, training: bool) -> Tensor:
    """Zero entries with a probability, a multiple of 2^-16, and scale the others so that means stay.

    torch draws a number per entry, which took 43 % of a training step on the film graph; one draw of 64
    bits serves four entries. Draws from torch's global generator.
    """
    if not training or probability == 0:
        return values
    dropped = round(probability * _LEVELS)
    draws = torch.empty((values.numel() + 3) // 4, dtype=torch.int64, device=values.device)
    levels = draws.random_(-(2**63), None).view(torch.int16)[: values.numel()]
    kept = (levels >= dropped - _LEVELS // 2).view(values.shape)
    # A product, as masked_fill has no vector instructions.
    return values * kept.to(values.dtype).mul_(_LEVELS / (_LEVELS - dropped))
