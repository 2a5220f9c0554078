"""Load the weights of a network that is not trained, and make sure that they are the ones meant."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from gsdist.data.download import file_sha256
from gsdist.errors import CheckpointError
from gsdist.models import StagedNetwork

__all__ = ["fix_weights", "frozen_network", "load_features", "load_weights", "read_weights"]

Network = TypeVar("Network", bound=nn.Module)
_CLASSIFIER = "classifier."
"""What the last layer of a `StagedNetwork` is called; it is for the classes of its own data."""


def fix_weights(config: object, weights: str, sha256: str) -> None:
    """Make the SHA-256 of a file of weights a setting, or check it where it already is one.

    As a setting it is compared between ranks, kept with the run and checked on a resume.

    Args:
        config: a frozen dataclass under construction.
        weights: name of its field that names the file; nothing happens where that is None.
        sha256: name of its field for the hash.

    Raises:
        CheckpointError: the file cannot be read, or has another hash than the one expected.
    """
    path = getattr(config, weights)
    if path is not None:
        object.__setattr__(config, sha256, _verified_hash(path, getattr(config, sha256)))


def _verified_hash(path: Path, expected: str | None) -> str:
    """Return the SHA-256 of a file of weights.

    Raises:
        CheckpointError: the file cannot be read, or has another hash than the one expected.
    """
    try:
        found = file_sha256(path)
    except OSError as error:
        raise CheckpointError(
            f"cannot read the weights {path}: {error.strerror}; `gsdist train ... --save-model PATH` "
            "writes such a file"
        ) from error
    if expected not in (None, found):
        raise CheckpointError(
            f"{path} has SHA-256 {found}, expected {expected}: it holds other weights than those asked "
            "for; name the right file, or leave the hash out"
        )
    return found


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read what `--save-model` wrote: parameters and buffers by name, on the CPU.

    Raises:
        CheckpointError: the file cannot be read or is none of weights.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} is not a file of weights: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path} is not a file of weights: it holds no tensors by name")
    return state


def load_weights(network: nn.Module, path: Path, *, assign: bool = False) -> None:
    """Fill a network with what `--save-model` wrote: parameters and buffers by name.

    With `assign` the file's tensors take the place of the network's own, which may be on device meta.

    Raises:
        CheckpointError: not a file of weights, or weights of another network.
    """
    state = read_weights(path)
    try:
        network.load_state_dict(state, assign=assign)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} does not hold the weights of this {type(network).__name__}: {error}; name the file "
            "written when that very network was trained"
        ) from error


def load_features(network: StagedNetwork, path: Path) -> None:
    """Fill a network with weights from a file, all but its classifier.

    Raises:
        CheckpointError: not a file of weights, or weights of another network.
    """
    state = {k: v for k, v in network.state_dict().items() if k.startswith(_CLASSIFIER)}
    state |= {k: v for k, v in read_weights(path).items() if not k.startswith(_CLASSIFIER)}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} does not hold the weights of this {type(network).__name__}: {error}; those of a network "
            "with branches or peers must be stripped first (gsdist compact --strip)"
        ) from error


def frozen_network(build: Callable[[], Network], path: Path) -> Network:
    """Build a network with weights from a file, in evaluation mode and without gradients.

    Draws no random numbers.

    Raises:
        CheckpointError: not a file of weights, or weights of another network.
    """
    with torch.device("meta"):
        network = build()
    load_weights(network, path, assign=True)
    return network.requires_grad_(False).eval()
