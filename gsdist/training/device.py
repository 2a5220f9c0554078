"""Choose the device a worker trains on, and move batches there."""

import os
from collections.abc import Mapping
from typing import Any, Literal

import torch

from gsdist.errors import ConfigError

__all__ = ["Device", "to_device", "training_device"]

Device = Literal["auto", "cpu", "cuda"]


def training_device(
    choice: Device, *, local_rank: int, shared: bool = False, deterministic: bool = False
) -> torch.device:
    """Return the CPU, or the GPU of this worker's local rank, which becomes torch's current one.

    `auto` is a GPU where torch finds one. With `shared` several workers may have one GPU.

    Raises:
        ConfigError: no GPU, or fewer than workers on this machine.
    """
    if choice == "cpu" or (choice == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if count == 0:
        raise ConfigError(
            f"device is {choice!r}, but torch {torch.__version__} finds no GPU; use the device cpu, or a "
            "build of torch for this machine's driver"
        )
    if local_rank >= count and not shared:
        raise ConfigError(
            f"local rank {local_rank} has no GPU of its own, torch finds {count}; start one worker per GPU, "
            "or let workers share one with the backend gloo"
        )
    if deterministic:  # cuBLAS asks for it, before its first call
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    device = torch.device("cuda", local_rank % count)
    torch.cuda.set_device(device)
    return device


def to_device(batch: Any, device: torch.device) -> Any:
    """Move everything in a collated batch that has a `to`; lists, tuples and mappings are gone through."""
    if hasattr(batch, "to"):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch
