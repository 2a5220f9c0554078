"""Name the methods that the planner compares, with the settings it would use."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gsdist.reducers import (
    DenseConfig,
    GsSgdConfig,
    GTopKConfig,
    OkTopKConfig,
    PowerSgdConfig,
    RandomKConfig,
    ReducerConfig,
    TopKConfig,
)

__all__ = ["BASELINE", "CANDIDATES", "Candidate"]

BASELINE = "dense-bf16"
"""What everything must beat: half the bytes, no state, no tuning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """Tie a method's settings to a name."""

    name: str
    config: ReducerConfig
    measured_as: str
    """Name of the method in the convergence suite."""
    offered: bool = True
    """Whether `auto` may choose it."""

    @property
    def is_dense(self) -> bool:
        """Tell a method that sends everything."""
        return isinstance(self.config, DenseConfig)


def _compared() -> tuple[Candidate, ...]:
    proposals = TopKConfig(exchange="proposals")
    return (
        Candidate(name="dense", config=DenseConfig(), measured_as="dense"),
        Candidate(name=BASELINE, config=DenseConfig(wire_dtype="bfloat16"), measured_as="dense"),
        *(
            Candidate(name=f"gs-sgd-{c}x", config=GsSgdConfig(compression=c), measured_as="gs-sgd")
            for c in (10, 30, 100)
        ),
        Candidate(name="power-sgd", config=PowerSgdConfig(rank=2), measured_as="power-sgd"),
        Candidate(name="top-k-proposals", config=proposals, measured_as="proposals"),
        Candidate(name="top-k", config=TopKConfig(), measured_as="top-k"),
        Candidate(name="g-top-k", config=GTopKConfig(), measured_as="g-top-k"),
        Candidate(name="ok-top-k", config=OkTopKConfig(), measured_as="ok-top-k"),
        Candidate(name="random-k", config=RandomKConfig(), measured_as="random-k", offered=False),
    )


CANDIDATES: Mapping[str, Candidate] = MappingProxyType({one.name: one for one in _compared()})
"""Methods by name. Random-k is shown, and chosen by nobody but the user."""
