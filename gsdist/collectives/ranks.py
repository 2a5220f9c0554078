"""Tell ranks within a group, where its messages must lie, and when a device is done."""

import torch
import torch.distributed as dist

__all__ = ["message_device", "rank_of", "wait_for_device"]


def rank_of(group: dist.ProcessGroup | None) -> int:
    """Return this worker's rank within a group; None is the default group.

    Unlike `torch.distributed.get_rank` it works for groups torch does not know, such as `LocalGroup`.
    """
    return dist.get_rank() if group is None else group.rank()


def message_device(group: dist.ProcessGroup | None) -> torch.device:
    """Return where tensors of a group's own making must lie: on this worker's GPU if NCCL is all it has."""
    try:
        backend = dist.get_backend(group)
    except ValueError:  # a group torch does not know, such as `LocalGroup`
        backend = "gloo"
    return torch.device("cuda" if backend == "nccl" else "cpu")


def wait_for_device(device: torch.device) -> None:
    """Return when a GPU has done what it was asked to; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
