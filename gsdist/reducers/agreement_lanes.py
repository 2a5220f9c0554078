"""Check inside a sum whether all ranks hold the same.

Each bit of a checksum of what they hold travels as its own 0/1 lane. The sum of a lane is 0 or the world size
exactly when all ranks sent the same bit, a verdict that every rank reads off the reduced buffer alike.
(Comparing the sum of a hash with world size times one's own hash is not such a verdict: one rank may see
equality where another does not.)
"""

import struct
from collections.abc import Sequence
from zlib import crc32

import torch
from torch import Tensor

__all__ = ["LANES", "FlagAndLanes", "all_agree"]

LANES = 32
"""Lanes of one check."""
_FLAG = struct.Struct("=f")
_LANES_OF_OCTET = [
    struct.pack("=8f", *(octet >> bit & 1 for bit in range(8))) for octet in range(256)
]


class FlagAndLanes:
    """Make what travels, in one tensor: between exchanges caches are cold, and making a new one is dear."""

    def __init__(self) -> None:
        self._memory = bytearray(_FLAG.size * (1 + LANES))
        self._numbers = torch.frombuffer(self._memory, dtype=torch.float32)

    def of(self, flag: bool, content: bytes) -> Tensor:
        """Spread the bits of a checksum over 0/1 lanes, lowest first, behind a flag that may differ.

        Returns a float32 tensor of shape (1 + LANES,) on the CPU, valid until the next call.
        """
        octets = crc32(content).to_bytes(LANES // 8, "little")
        lanes = [_LANES_OF_OCTET[octet] for octet in octets]
        self._memory[:] = b"".join([_FLAG.pack(flag), *lanes])
        return self._numbers


def all_agree(summed: Sequence[float], world_size: int) -> bool:
    """Tell from summed lanes whether all ranks hold the same.

    Exact for world sizes up to 2**24, where float32 still counts.
    """
    return {0.0, float(world_size)}.issuperset(summed)
