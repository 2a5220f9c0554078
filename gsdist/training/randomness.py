"""Seed every source of randomness, and save and restore where it stands."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["capture", "derive_seed", "generator_for", "restore", "seed_everything"]


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(derive_seed(seed))
    torch.manual_seed(seed)


def derive_seed(*parts: int) -> int:
    """Mix several numbers into one seed of 32 bits, all that torch's CPU generator takes notice of."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def generator_for(*parts: int) -> torch.Generator:
    """Return a torch generator seeded by several numbers, for example seed and rank."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def capture(generator: torch.Generator) -> dict[str, Any]:
    """Return the state of all sources and of the augmentation generator: plain values and tensors."""
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    return {
        "python": random.getstate(),
        "numpy": {
            "key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "pos": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "gpu": torch.cuda.get_rng_state() if _gpu_in_use() else None,
        "augmentation": generator.get_state(),
    }


def restore(state: Mapping[str, Any], generator: torch.Generator) -> None:
    """Put all sources and the augmentation generator back to a captured state."""
    random.setstate(state["python"])
    numpy_state = state["numpy"]
    np.random.set_state(
        {
            "bit_generator": "MT19937",
            "state": {
                "key": numpy_state["key"].numpy().astype(np.uint32),
                "pos": numpy_state["pos"],
            },
            "has_gauss": numpy_state["has_gauss"],
            "gauss": numpy_state["gauss"],
        }
    )
    torch.set_rng_state(state["torch"])
    if state["gpu"] is not None and _gpu_in_use():
        torch.cuda.set_rng_state(state["gpu"])
    generator.set_state(state["augmentation"])


def _gpu_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
