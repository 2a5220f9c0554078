"""Predict bytes at the interface and seconds of an exchange from its collectives.

Bytes at the interface are payload in whole Ethernet frames plus a constant per message, which carries what
the backend says beside the payload (headers, announcements) and TCP's acknowledgements. The constant and
the latency of a message are measured once per lab by an all-reduce of nothing much.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gsdist.collectives.cost_model import Link, Transfer, cost_of

__all__ = ["FRAMING", "Calibration", "interface_bytes", "predicted_seconds"]

FRAMING = 1514 / 1448
"""Bytes of a full Ethernet frame over the payload that TCP with time stamps puts in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Hold what is measured once per lab, before any method."""

    seconds_per_message: float
    """Latency alpha: seconds of a small ring all-reduce over the messages that follow one another."""
    bytes_per_message: float
    """Bytes at the interface beside payload, of a small ring all-reduce, per message."""
    bytes_per_second: float
    """Bandwidth a large ring all-reduce got, whole frames in one direction."""


def _shares(kind: str, ranks: int) -> tuple[float, float, int, int]:
    """Return what rank 0 sends and receives, as shares of a buffer and in messages.

    Rank 0 is the root of trees and gathers; in rings all ranks are alike. `cost_model` adds the two
    directions of a tree, which follow one another in time; an interface counts them apart.
    """
    levels = math.ceil(math.log2(ranks))
    others = ranks - 1
    return {
        "ring_all_reduce": (2 * others / ranks, 2 * others / ranks, 2 * others, 2 * others),
        "tree_all_reduce": (levels, levels, levels, levels),
        "ring_all_gather": (others, others, others, others),
        "all_to_all": (1, 1, others, others),
        "gather": (0, others, 0, others),
        "tree_broadcast": (levels, 0, levels, 0),
        "tree_reduce": (0, levels, 0, levels),
    }[kind]


def interface_bytes(transfers: Sequence[Transfer], ranks: int, bytes_per_message: float) -> float:
    """Return the bytes at rank 0's interface in its busier direction, whole frames."""
    sent = received = 0.0
    for transfer in transfers:
        out, into, messages_out, messages_in = _shares(transfer.kind, ranks)
        sent += out * transfer.size * FRAMING + messages_out * bytes_per_message
        received += into * transfer.size * FRAMING + messages_in * bytes_per_message
    return max(sent, received)


def predicted_seconds(
    transfers: Sequence[Transfer],
    ranks: int,
    calibration: Calibration,
    *,
    rate: float | None,
) -> float:
    """Return the seconds of messages and bytes after the cost model.

    Args:
        transfers: the collectives, one after the other.
        ranks: number of ranks.
        calibration: of the same lab.
        rate: bits per second of the links; None: as fast as the calibration found them.
    """
    bandwidth = calibration.bytes_per_second if rate is None else rate / 8
    link = Link(latency=calibration.seconds_per_message, bandwidth=bandwidth / FRAMING)
    return cost_of(tuple(transfers), ranks).seconds(link)
