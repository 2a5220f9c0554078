"""Derive seeds of single draws."""

import struct
from zlib import crc32

__all__ = ["draw_seed"]


def draw_seed(*parts: int) -> int:
    """Return a 32-bit seed that depends on all parts; torch's CPU generator ignores higher bits."""
    return crc32(struct.pack(f"<{len(parts)}Q", *parts))
