"""Let the ranks of a group compare notes before anything depends on their agreement."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from gsdist.collectives.ranks import message_device, rank_of
from gsdist.errors import ConfigError, ConfigMismatch, GsdistError

__all__ = ["gather_json", "require_agreement", "share_faults"]

_MISSING = "(absent)"


def gather_json(payload: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Gather one JSON-serialisable value from every rank, in rank order.

    JSON instead of pickle: nothing received from the network is ever executed.
    Collectives: two all-gathers (lengths, then padded bytes).
    """
    device = message_device(group)
    encoded = torch.frombuffer(bytearray(json.dumps(payload).encode()), dtype=torch.uint8)
    length = torch.tensor([encoded.numel()], device=device)
    world_size = dist.get_world_size(group)
    lengths = [torch.empty_like(length) for _ in range(world_size)]
    dist.all_gather(lengths, length, group=group)
    longest = max(int(size) for size in lengths)
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: encoded.numel()] = encoded
    received = [torch.empty_like(padded) for _ in range(world_size)]
    dist.all_gather(received, padded, group=group)
    return [
        json.loads(bytes(buffer[: int(size)].tolist()))
        for buffer, size in zip(received, lengths, strict=True)
    ]


def require_agreement(
    payload: Mapping[str, Any],
    group: dist.ProcessGroup | None = None,
    *,
    subject: str = "configuration",
) -> None:
    """Check that every rank passes the same mapping, field by field.

    All ranks of `group` must call it. Values must be JSON-serialisable.

    Raises:
        ConfigMismatch: on every rank alike, with a table field x rank of what differs.

    Collectives: two all-gathers.
    """
    gathered = gather_json(dict(payload), group)
    names = sorted({name for one in gathered for name in one})
    differing = [
        name
        for name in names
        if any(one.get(name, _MISSING) != gathered[0].get(name, _MISSING) for one in gathered)
    ]
    if not differing:
        return
    lines = [
        f"  {name}: "
        + ", ".join(
            f"rank {rank} has {one.get(name, _MISSING)!r}" for rank, one in enumerate(gathered)
        )
        for name in differing
    ]
    raise ConfigMismatch(
        f"rank {rank_of(group)}/{len(gathered)}: the {subject} differs between ranks; "
        "start every rank with the same settings and versions:\n" + "\n".join(lines)
    )


@contextmanager
def share_faults(
    group: dist.ProcessGroup | None = None, *, kind: type[GsdistError] = ConfigError
) -> Iterator[None]:
    """Let no rank go on alone: a `GsdistError` inside on any rank is raised on all of them.

    The rank at fault raises its own error, the others one of `kind` that quotes it. The body must not
    issue collectives.

    Collectives: two all-gathers.
    """
    fault: GsdistError | None = None
    try:
        yield
    except GsdistError as error:
        fault = error
    faults = gather_json(str(fault) if fault else None, group)
    if fault:
        raise fault
    quoted = [f"rank {rank}: {text}" for rank, text in enumerate(faults) if text is not None]
    if quoted:
        raise kind("another rank refused: " + "; ".join(quoted))
