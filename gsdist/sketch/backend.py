"""Choose who computes: the C++ extension, or numba where the extension cannot be loaded."""

import os
import warnings
from typing import Any, Protocol

from numpy.typing import NDArray

from gsdist.errors import ConfigError
from gsdist.sketch.format import integer

__all__ = ["Kernels", "build_info", "get_num_threads", "kernels", "set_num_threads"]

Array = NDArray[Any]


class Kernels(Protocol):
    """Compute on NumPy arrays that have been checked already.

    Tables are float32 of shape (rows, columns), values float32, indices int64, all C-contiguous.
    Any number of threads gives the same bits.
    """

    NAME: str

    def build_info(self) -> dict[str, Any]:
        """Return what the backend was built with and for."""

    def encode_dense(
        self, table: Array, seed: int, values: Array, offset: int, threads: int
    ) -> None:
        """Add `values` at coordinates offset, offset + 1, ... to the table."""

    def encode_sparse(
        self, table: Array, seed: int, indices: Array, values: Array, threads: int
    ) -> None:
        """Add `values` at coordinates `indices`, in that order, to the table."""

    def estimate(self, table: Array, seed: int, indices: Array, out: Array, threads: int) -> None:
        """Write the median over the rows of sign * cell."""

    def heavy_hitters(self, table: Array, seed: int, dimension: int, k: int, threads: int) -> Array:
        """Return the k indices of largest |estimate|, ties to the lowest, ascending."""

    def top_k(self, values: Array, k: int, threads: int) -> Array:
        """Return the k indices of largest |value|, ties to the lowest, ascending."""

    def compensate(
        self,
        out: Array,
        residual: Array | None,
        momentum: Array | None,
        gradient: Array,
        scale: float,
        momentum_factor: float,
        nesterov: bool,
        threads: int,
    ) -> bool:
        """Write residual + update; return whether all of it is finite."""


def _load() -> Kernels:
    try:
        from gsdist.sketch import native
    except ImportError as error:
        if os.environ.get("GSDIST_REQUIRE_EXT") == "1":
            raise ImportError(
                "GSDIST_REQUIRE_EXT=1 is set, but the extension gsdist._native cannot be used: "
                f"{error}. Rebuild it with `pip install --force-reinstall gsdist` (or `pip install "
                "-e .` in a checkout; needs a C++17 compiler), or unset GSDIST_REQUIRE_EXT"
            ) from error
        warnings.warn(
            f"the extension gsdist._native cannot be used ({error}); falling back to numba: same "
            "results, but roughly 10 to 50 times slower, and the first call compiles for seconds. "
            "Rebuild with `pip install --force-reinstall gsdist` and a C++17 compiler at hand",
            RuntimeWarning,
            stacklevel=2,
        )
        from gsdist.sketch import reference

        return reference
    return native


kernels: Kernels = _load()
_threads = 1


def build_info() -> dict[str, Any]:
    """Return the backend in use and how it was built.

    Keys: `backend` ("native" or "numba") and `format_version`; with the extension also `compiler`,
    `simd_levels` (built and usable here) and `simd_level` (in use).
    """
    return {"backend": kernels.NAME, **kernels.build_info()}


def set_num_threads(threads: int) -> None:
    """Set how many CPU threads one call may use. Results do not depend on it.

    Raises:
        ConfigError: `threads` is not a positive integer.
    """
    global _threads
    if (count := integer("threads", threads)) < 1:
        raise ConfigError(f"threads={count}: expected a positive integer")
    _threads = count


def get_num_threads() -> int:
    """Return how many CPU threads one call may use; 1 unless set."""
    return _threads
