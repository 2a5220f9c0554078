"""Offer the kernels that reducers need around a sketch: exact top-k and error compensation."""

from __future__ import annotations

from gsdist.errors import ConfigError
from gsdist.sketch.arrays import AnyArray, ArrayT, float_view, like, writable_float_view
from gsdist.sketch.backend import get_num_threads, kernels
from gsdist.sketch.format import integer

__all__ = ["checked_k", "compensate", "top_k"]


def checked_k(k: int, available: int, what: str) -> int:
    """Return k if that many entries can be chosen.

    Raises:
        ConfigError: k is no integer, below 1 or above `available`.
    """
    if not 1 <= (count := integer("k", k)) <= available:
        raise ConfigError(f"k={count}: expected 1 to {available}, the {what}")
    return count


def top_k(values: ArrayT, k: int) -> ArrayT:
    """Return the k indices of largest |value|, ascending; ties go to the lowest index.

    Args:
        values: finite float32, 1-D; what NaN and infinity compare to is not defined.
        k: 1 to the number of values.

    Returns:
        int64 array of k indices, of the kind of `values`.

    Raises:
        ConfigError: k is out of range.
        InputTypeError: `values` is not a contiguous 1-D float32 array or CPU tensor.
    """
    view = float_view(values, "values")
    count = checked_k(k, view.size, "number of values")
    return like(kernels.top_k(view, count, get_num_threads()), values)


def compensate(
    out: AnyArray,
    residual: AnyArray | None,
    gradient: AnyArray,
    *,
    momentum: AnyArray | None = None,
    momentum_factor: float = 0.0,
    nesterov: bool = False,
    scale: float = 1.0,
) -> bool:
    """Write residual + update to `out` in one pass and tell whether all of it is finite.

    With g = scale * gradient, the update is g without momentum; else it is u = momentum_factor *
    momentum + g, and with Nesterov g + momentum_factor * u. Only `out` is written. All arrays are
    float32, 1-D, of one length; a residual of None stands for zeros. `out` must not overlap
    the inputs.

    Raises:
        ConfigError: the lengths differ, or there is a momentum factor or Nesterov without momentum.
        InputTypeError: an array is not a contiguous 1-D float32 array or CPU tensor.
    """
    target = writable_float_view(out, "out")
    given = {"gradient": gradient, "residual": residual, "momentum": momentum}
    views = {
        name: float_view(array, name)
        for name, array in given.items()
        if array is not None or name == "gradient"
    }
    for name, view in views.items():
        if view.size != target.size:
            raise ConfigError(
                f"{name} has {view.size} values, out has {target.size}; pass equal lengths"
            )
    if momentum is None and (momentum_factor != 0.0 or nesterov):
        raise ConfigError(
            f"momentum_factor={momentum_factor}, nesterov={nesterov}, but momentum is None; "
            "pass the momentum buffer"
        )
    return kernels.compensate(
        target,
        views.get("residual"),
        views.get("momentum"),
        views["gradient"],
        scale,
        momentum_factor,
        nesterov,
        get_num_threads(),
    )
