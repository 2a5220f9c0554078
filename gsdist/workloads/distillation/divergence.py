"""Compare two sets of logits: the divergence that all distillation methods minimise.

Source: Hinton et al., Distilling the Knowledge in a Neural Network, 2015, section 2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["at_least_float32", "divergence", "log_probabilities"]


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compute the mean over rows of T^2 KL(teacher || student) at temperature T, a scalar.

    Args:
        student: logits `(N, C)`.
        teacher: logits `(N, C)`, the target; gets no gradient.
        temperature: divides all logits, positive.
    """
    target = log_probabilities(teacher.detach() / temperature)
    answer = log_probabilities(student / temperature)
    mean = F.kl_div(answer, target, reduction="batchmean", log_target=True)
    return mean * temperature**2


def log_probabilities(logits: Tensor) -> Tensor:
    """Compute the logarithm of the softmax over rows `(N, C)`, in float32 at least."""
    return at_least_float32(logits).log_softmax(1)


def at_least_float32(logits: Tensor) -> Tensor:
    """Return logits in float32, those in float64 as they are.

    Under autocast they come in half precision, whose rounding errors are as large as what is compared.
    """
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
