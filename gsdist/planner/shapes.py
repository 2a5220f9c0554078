"""Make up the parameters of a transformer of a given size, for questions about models nobody has built."""

import math

from gsdist.errors import ConfigError

__all__ = ["transformer_shapes"]

_WIDTH_PER_LAYER = 128
"""Width over layers of well-known language models (7 billion: 4096 by 32)."""
_GRANULE = 8
_LEAST = 100_000


def transformer_shapes(parameters: float) -> dict[str, tuple[int, ...]]:
    """Return shapes by name of a decoder without embeddings, within 10 % of a number of parameters.

    A layer has 12 width^2 weights in four matrices, and two vectors.

    Raises:
        ConfigError: fewer than 100,000 parameters.
    """
    if parameters < _LEAST:
        raise ConfigError(f"params is {parameters:g}; expected at least {_LEAST:,}")
    layers = max(1, round((parameters / (12 * _WIDTH_PER_LAYER**2)) ** (1 / 3)))
    width = round(math.sqrt(parameters / (12 * layers)) / _GRANULE) * _GRANULE
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(layers):
        shapes |= {
            f"{layer}.attention.in": (3 * width, width),
            f"{layer}.attention.out": (width, width),
            f"{layer}.mlp.in": (4 * width, width),
            f"{layer}.mlp.out": (width, 4 * width),
            f"{layer}.norm.1": (width,),
            f"{layer}.norm.2": (width,),
        }
    return shapes
