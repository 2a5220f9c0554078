"""Check inside a sum whether all ranks contributed the same integers.

Each bit of a checksum of the integers travels as its own 0/1 lane. The sum of a lane is 0 or the world size
exactly when all ranks sent the same bit, a verdict that every rank reads off the reduced buffer alike.
(Comparing the sum of a hash with world size times one's own hash is not such a verdict: one rank may see
equality where another does not.)
"""

import struct
from collections.abc import Sequence
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

__all__ = ["LANES", "all_agree", "bit_lanes"]

LANES = 32
"""Lanes of one check."""


def bit_lanes(values: Sequence[int]) -> Tensor:
    """Spread the bits of a checksum of some values over 0/1 lanes.

    Of each value the low 32 bits count. Returns a float32 tensor of shape (LANES,), lowest bit first.
    """
    checksum = crc32(struct.pack(f"<{len(values)}I", *(value & 0xFFFFFFFF for value in values)))
    octets = np.frombuffer(checksum.to_bytes(LANES // 8, "little"), np.uint8)
    return torch.from_numpy(np.unpackbits(octets, bitorder="little").astype(np.float32))


def all_agree(summed: Tensor, world_size: int) -> bool:
    """Tell from summed lanes whether all ranks sent equal values.

    Exact for world sizes up to 2**24, where float32 still counts.
    """
    counts = summed.cpu().numpy()
    return bool(((counts == 0) | (counts == world_size)).all())
