"""Tell which differences of versions between ranks matter."""

import warnings
from collections.abc import Mapping

import torch

import gsdist
from gsdist.collectives import gather_json
from gsdist.sketch import SketchFormat

__all__ = ["required_versions", "warn_of_differences"]


def required_versions() -> dict[str, str | int]:
    """Return what must be equal on all ranks: the sketch's format, and releases up to the last number."""
    return {
        "version of torch": _release(torch.__version__),
        "version of gsdist": _release(gsdist.__version__),
        "version of the sketch format": SketchFormat.version,
    }


def warn_of_differences(versions: Mapping[str, str]) -> None:
    """Warn, on rank 0, when ranks differ in what follows the release. Collectives: two all-gathers."""
    gathered = gather_json(dict(versions))
    for name, own in versions.items():
        found = [one[name] for one in gathered]
        if any(other != own for other in found) and own == found[0]:
            listed = ", ".join(f"rank {rank} has {version}" for rank, version in enumerate(found))
            warnings.warn(f"ranks run different versions of {name}: {listed}", stacklevel=2)


def _release(version: str) -> str:
    """Return "2.11" for "2.11.1+cpu"."""
    return ".".join(version.split("+")[0].split(".")[:2])
