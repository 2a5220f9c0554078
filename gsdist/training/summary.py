"""Summarise a run in one JSON document, and read such documents back."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from gsdist.errors import DataError
from gsdist.reducers.statistics import wire_seconds

__all__ = [
    "EXCHANGE",
    "SUMMARY_FILE",
    "RunSummary",
    "curves_of",
    "loss_by_compression",
    "over_seeds",
    "read_summaries",
]

SUMMARY_FILE = "summary.json"
EXCHANGE = "exchange: "
"""Begins the names of phases that run in the exchange's thread."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """Hold what a run did and what it cost; bytes and seconds are rank 0's."""

    workload: str
    model: str
    data: str
    reducer: str
    world_size: int
    num_parameters: int
    """d, the number of trained parameters."""
    steps: int
    steps_per_s: float
    """Optimizer steps per second of training: without evaluation and checkpoints."""
    primary_metric: str
    metrics: Mapping[str, float]
    """Result of the last evaluation."""
    payload_bytes_run: int
    """Bytes given to the collectives of the exchange over the whole run, warm-up included."""
    dense_bytes_run: int
    """Bytes a dense float32 exchange would have given for the same steps."""
    payload_bytes_last_step: int
    skipped_steps: int
    phase_seconds: Mapping[str, float]
    """Seconds per phase of the run. Those named "exchange: ..." run in a thread of their own, partly inside
    "backward"."""
    curves: dict[str, dict[str, list[float]]]
    """"train" and "evaluation": one list per recorded quantity, with "step" and "payload_bytes"."""
    config: Mapping[str, Mapping[str, Any]]
    config_hash: str
    versions: Mapping[str, str]
    picture: Mapping[str, Any] | None = None
    """Examples placed in the plane: lists "x", "y" and "group"."""
    compression_of: Mapping[str, float] = field(default_factory=dict)
    """The same as `compression` for the parts of the model that the workload tells apart."""

    @property
    def compression(self) -> float:
        """Return dense bytes over payload bytes, of the whole run."""
        return self.dense_bytes_run / self.payload_bytes_run if self.payload_bytes_run else 1.0

    @property
    def exchange_seconds(self) -> tuple[float, float]:
        """Return the seconds that the exchange computed and those in collectives, waiting included."""
        phases = {
            name.removeprefix(EXCHANGE): value
            for name, value in self.phase_seconds.items()
            if name.startswith(EXCHANGE)
        }
        sending = wire_seconds(phases)
        return sum(phases.values()) - sending, sending

    @property
    def sending_rate(self) -> float:
        """Return payload bytes per second in collectives; 0 without any."""
        sending = self.exchange_seconds[1]
        return self.payload_bytes_run / sending if sending else 0.0

    @property
    def primary(self) -> float:
        """Return the metric by which runs are compared."""
        return self.metrics[self.primary_metric]

    @property
    def seconds(self) -> float:
        """Return the seconds that all phases of the run took, evaluation included."""
        return sum(
            value for name, value in self.phase_seconds.items() if not name.startswith(EXCHANGE)
        )

    def to_mapping(self) -> dict[str, Any]:
        """Return the fields, and what follows from them, as JSON knows them."""
        steps = max(1, self.steps)
        return {
            **asdict(self),
            **self.metrics,
            "seconds": self.seconds,
            "seeds": [self.config["train"]["seed"]],
            "payload_bytes_per_step": self.payload_bytes_run / steps,
            "dense_bytes_per_step": self.dense_bytes_run / steps,
            "compression": self.compression,
        }

    def to_json(self) -> str:
        """Return the JSON text."""
        return json.dumps(self.to_mapping(), indent=1) + "\n"

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any]) -> "RunSummary":
        """Build a summary from what `to_mapping` returned.

        Raises:
            KeyError: a field is missing.
        """
        return cls(
            **{
                one.name: content[one.name]
                for one in fields(cls)
                if one.name in content or _is_needed(one)
            }
        )


def _is_needed(field_: Field[Any]) -> bool:
    return field_.default is MISSING and field_.default_factory is MISSING


def over_seeds(summaries: Sequence[RunSummary]) -> dict[str, Any]:
    """Return means over runs that differ in their seed, and how they spread, as JSON knows them.

    "standard_deviation" is that of the sample, 0 for a single run; "seconds" are those of one run.
    """
    values = {
        name: [run.metrics[name] for run in summaries] for name in sorted(summaries[0].metrics)
    }
    return {
        **{name: fmean(found) for name, found in values.items()},
        "standard_deviation": {
            name: stdev(found) if len(found) > 1 else 0.0 for name, found in values.items()
        },
        "seconds": fmean(run.seconds for run in summaries),
        "seeds": [run.config["train"]["seed"] for run in summaries],
        "runs": [run.to_mapping() for run in summaries],
    }


def loss_by_compression(run: RunSummary) -> str | None:
    """Say so when the bytes that a run saved cost more time than they can have won; None: they may have won.

    What was saved would have taken at most as long per byte as what was sent: latency and waiting for other
    workers count as sending here, and a dense exchange hides behind backward. So this is said too seldom
    rather than too often.
    """
    compressing, sending = run.exchange_seconds
    won = sending * (run.compression - 1.0)
    if run.reducer == "dense" or run.world_size == 1 or compressing <= won:
        return None
    per_step = 1e3 / max(1, run.steps)
    return (
        f"the bytes saved cost more time than they win: {run.reducer} computed "
        f"{per_step * compressing:.3g} ms per step to save at most {per_step * won:.3g} ms of sending; "
        "try --reducer dense, or ask `gsdist plan`"
    )


def curves_of(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Turn the records of a run into one list of values per kind and name."""
    curves: dict[str, dict[str, list[float]]] = {"train": {}, "evaluation": {}}
    for record in records:
        for name, value in record.items():
            if name != "kind":
                curves[record["kind"]].setdefault(name, []).append(value)
    return curves


def read_summaries(path: Path) -> list[RunSummary]:
    """Read the summaries in a file or run directory: one run, or a list of runs.

    Raises:
        DataError: there is none, or it is no summary.
    """
    file = path / SUMMARY_FILE if path.is_dir() else path
    try:
        content = json.loads(file.read_text())
        runs = content if isinstance(content, list) else [content]
        return [RunSummary.from_mapping(run) for run in runs]
    except OSError as error:
        raise DataError(
            f"no run summary at {file}: {error.strerror}; name a run directory"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} is not a run summary written by gsdist: {error}") from error
