"""Summarise a run in one JSON document, and read such documents back."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from gsdist.errors import DataError
from gsdist.reducers.statistics import is_wire

__all__ = ["SUMMARY_FILE", "RunSummary", "curves_of", "loss_by_compression", "read_summaries"]

SUMMARY_FILE = "summary.json"


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

    @property
    def compression(self) -> float:
        """Return dense bytes over payload bytes, of the whole run."""
        return self.dense_bytes_run / self.payload_bytes_run if self.payload_bytes_run else 1.0

    @property
    def primary(self) -> float:
        """Return the metric by which runs are compared."""
        return self.metrics[self.primary_metric]

    def to_mapping(self) -> dict[str, Any]:
        """Return the fields, and what follows from them, as JSON knows them."""
        steps = max(1, self.steps)
        return {
            **asdict(self),
            **self.metrics,
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
        return cls(**{field.name: content[field.name] for field in fields(cls)})


def loss_by_compression(run: RunSummary) -> str | None:
    """Say so when the bytes that a run saved cost more time than they can have won; None: they may have won.

    What was saved would have taken at most as long per byte as what was sent: latency and waiting for other
    workers count as sending here, and a dense exchange hides behind backward. So this is said too seldom
    rather than too often.
    """
    prefix = "exchange: "
    seconds = {
        name.removeprefix(prefix): value
        for name, value in run.phase_seconds.items()
        if name.startswith(prefix)
    }
    sending = sum(value for name, value in seconds.items() if is_wire(name))
    compressing = sum(seconds.values()) - sending
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
