"""Check inside a sum whether all ranks contributed the same integers.

Each bit travels as its own 0/1 lane. The sum of a lane is 0 or the world size exactly when all ranks sent the
same bit, a verdict that every rank reads off the reduced buffer alike. (Comparing the sum of a hash with
world size times one's own hash is not such a verdict: one rank may see equality where another does not.)
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["LANES_PER_VALUE", "all_agree", "bit_lanes"]

LANES_PER_VALUE = 32


def bit_lanes(values: Sequence[int]) -> Tensor:
    """Spread the low 32 bits of each value over 0/1 lanes.

    Returns a float32 tensor of shape (32 * len(values),), lowest bit first.
    """
    words = torch.tensor([value & 0xFFFFFFFF for value in values], dtype=torch.int64)
    shifts = torch.arange(LANES_PER_VALUE)
    return ((words[:, None] >> shifts) & 1).to(torch.float32).flatten()


def all_agree(summed: Tensor, world_size: int) -> bool:
    """Tell from summed lanes whether all ranks sent equal values.

    Exact for world sizes up to 2**24, where float32 still counts.
    """
    return bool(((summed == 0) | (summed == world_size)).all())
