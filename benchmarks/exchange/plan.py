"""Tell the ranks of a lab what to measure."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.gradients import CapturedGradients

__all__ = ["Plan", "chunks"]

_MEMORY = 8e9
_BYTES_PER_PARAMETER = 20
"""What a reducer and its buffers hold at worst: residual, corrected gradient, result, buffer, scratch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Hold what every rank of a lab is told."""

    methods: tuple[str, ...]
    gradients: tuple[CapturedGradients, ...]
    density: float
    """k / d of all sparse methods."""
    seconds: float
    """Time to spend on the repetitions of one cell, beyond the least number of them."""
    least_repetitions: int
    """Three are enough where one takes more than 5 seconds."""
    most_repetitions: int
    warm_up: int
    """Repetitions that do not count."""

    def text(self) -> str:
        """Return the plan as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, path: Path) -> "Plan":
        """Read what `text` returned from a file."""
        values = json.loads(path.read_text())
        gradients = tuple(CapturedGradients(**one) for one in values.pop("gradients"))
        return cls(methods=tuple(values.pop("methods")), gradients=gradients, **values)


def chunks(methods: Sequence[str], dimension: int, ranks: int) -> Iterator[Sequence[str]]:
    """Split methods so that the reducers of one part fit into memory together; a part is timed in turn."""
    together = max(1, int(_MEMORY / (_BYTES_PER_PARAMETER * dimension * ranks)))
    parts = math.ceil(len(methods) / together)
    size = math.ceil(len(methods) / parts)
    for start in range(0, len(methods), size):
        yield methods[start : start + size]
