"""Give every process group one deadline.

Left alone, torch gives a new group 10 or 30 minutes, whatever its parent has.
"""

from collections.abc import Sequence
from datetime import timedelta
from weakref import WeakSet

import torch.distributed as dist

__all__ = ["deadline_of", "open_group", "set_deadline"]

_opened: "WeakSet[dist.ProcessGroup]" = WeakSet()


def open_group(
    ranks: Sequence[int] | None = None, *, parent: dist.ProcessGroup | None = None
) -> dist.ProcessGroup:
    """Open a group with backend and deadline of `parent` (None: the default group).

    `ranks` are global; unset, those of `parent`. All of them must call it.

    Collectives: those of `torch.distributed.new_group`, among the group's ranks.
    """
    model = dist.group.WORLD if parent is None else parent
    assert model is not None, "the default process group is not initialised"
    members = list(ranks) if ranks is not None else dist.get_process_group_ranks(model)
    group = dist.new_group(
        members,
        timeout=deadline_of(model),
        backend=None if parent is None else dist.get_backend(parent),
        # torch 2.11 names a locally synchronised group by how many groups this rank is in; ranks that are
        # in different numbers of them would wait for each other under different names
        use_local_synchronization=len(members) < dist.get_world_size(),
    )
    assert isinstance(group, dist.ProcessGroup)
    _opened.add(group)
    return group


def deadline_of(group: dist.ProcessGroup) -> timedelta | None:
    """Return how long an operation of a group may take; None: unknown, torch's default."""
    own: timedelta | None = getattr(group, "timeout", None)
    if own is not None:
        return own
    backend = group._get_backend(group._device_types[0])
    options = getattr(backend, "options", None)
    found: timedelta | None = getattr(options, "_timeout", None)
    return found


def set_deadline(deadline: timedelta) -> None:
    """Change the deadline of the default group and of all groups opened by `open_group`."""
    world = dist.group.WORLD
    assert world is not None, "the default process group is not initialised"
    for group in (world, *_opened):
        group.set_timeout(deadline)
