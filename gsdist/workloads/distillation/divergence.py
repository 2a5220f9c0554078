"""Compare two sets of logits: the divergence that all distillation methods minimise.

Source: Hinton et al., Distilling the Knowledge in a Neural Network, 2015, section 2.
"""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["divergence"]


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compute the mean over rows of T^2 KL(teacher || student) at temperature T, a scalar.

    Args:
        student: logits `(N, C)`.
        teacher: logits `(N, C)`, the target; gets no gradient.
        temperature: divides all logits, positive.
    """
    target = F.log_softmax(teacher.detach() / temperature, dim=1)
    answer = F.log_softmax(student / temperature, dim=1)
    mean = F.kl_div(answer, target, reduction="batchmean", log_target=True)
    return mean * temperature**2
