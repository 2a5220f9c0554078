"""Find mpirun and the settings that let it start any number of ranks here."""

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

__all__ = ["OPEN_MPI_SETTINGS", "find_mpirun"]

OPEN_MPI_SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
)
"""Environment of mpirun: containers run as root, and there may be more ranks than cores."""


def find_mpirun() -> str | None:
    """Return the mpirun that came with this interpreter's packages, or else the one on PATH."""
    beside = Path(sys.executable).with_name("mpirun")
    return str(beside) if beside.exists() else shutil.which("mpirun")
