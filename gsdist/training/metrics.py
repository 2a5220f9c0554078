"""Record what happens during a run: as JSON lines, in TensorBoard where it is installed, in W&B if asked."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

__all__ = [
    "JsonLinesWriter",
    "MetricWriter",
    "TensorBoardWriter",
    "WandbWriter",
    "open_writers",
    "read_records",
]

FILE_NAME = "metrics.jsonl"


class MetricWriter(Protocol):
    """Take one record after the other.

    A record is a flat mapping. It has "kind" ("train" or "evaluation") and "step"; all else is a number.
    """

    def write(self, record: Mapping[str, Any]) -> None:
        """Record one moment of the run."""

    def close(self) -> None:
        """Write out what is still held back."""


class JsonLinesWriter:
    """Append one JSON object per record to a file, each on disk as soon as it is written."""

    def __init__(self, path: Path, *, after_step: int | None = None) -> None:
        """Begin a new file; with `after_step`, keep the records of an existing one up to that step."""
        kept = (
            [] if after_step is None else [r for r in read_records(path) if r["step"] <= after_step]
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(partial, path)
        self._file = path.open("a")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append the record."""
        self._file.write(json.dumps(dict(record)) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardWriter:
    """Write every number of a record as a scalar named kind/name."""

    def __init__(self, directory: Path, *, after_step: int | None = None) -> None:
        """Raise ImportError when TensorBoard is not installed."""
        from torch.utils.tensorboard import SummaryWriter

        purge_step = None if after_step is None else after_step + 1
        self._writer = SummaryWriter(str(directory), purge_step=purge_step)

    def write(self, record: Mapping[str, Any]) -> None:
        """Add the record's scalars."""
        for name, value in record.items():
            if name not in ("kind", "step"):
                self._writer.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class WandbWriter:
    """Log every number of a record to a run of Weights & Biases as kind/name.

    A resumed run of ours is a new one there, which begins at the step after the checkpoint.
    """

    def __init__(self, directory: Path, *, project: str, settings: Mapping[str, Any]) -> None:
        """Begin a run; `settings` are shown with it."""
        import wandb

        self._run = wandb.init(
            project=project, dir=directory, name=directory.name, config=dict(settings)
        )

    def write(self, record: Mapping[str, Any]) -> None:
        """Log the record's numbers."""
        numbers = {
            f"{record['kind']}/{name}": value
            for name, value in record.items()
            if name not in ("kind", "step")
        }
        self._run.log(numbers, step=record["step"])

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


def open_writers(
    directory: Path,
    *,
    after_step: int | None = None,
    wandb_project: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> list[MetricWriter]:
    """Return the writers of a run: JSON lines, TensorBoard where it is installed, W&B if asked."""
    writers: list[MetricWriter] = [JsonLinesWriter(directory / FILE_NAME, after_step=after_step)]
    try:
        writers.append(TensorBoardWriter(directory / "tensorboard", after_step=after_step))
    except ImportError:
        pass
    if wandb_project is not None:
        writers.append(WandbWriter(directory, project=wandb_project, settings=settings or {}))
    return writers


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Read the records of a metrics.jsonl back; a last line cut off by a crash is left out."""
    if not path.exists():
        return
    with path.open() as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)
