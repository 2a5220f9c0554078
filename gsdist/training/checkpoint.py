"""Save a run so that it can go on with the same bits, and find the newest save that is whole.

A checkpoint is a directory `step-<number>`. Replicated state lies in `replicated/`, written by rank 0; what
differs between ranks in `rank-<rank>/`, written by each.

A save goes to a hidden directory first. When all ranks have written, rank 0 adds `manifest.json`, which names
every file with its size and digest, and renames the directory. What a crash leaves behind is therefore hidden
or does not match its manifest, and is passed over; there is no pointer file that could be lost. All ranks
must see the same directory.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from gsdist.collectives import gather_json, open_group, share_faults
from gsdist.errors import CheckpointError
from gsdist.training.checkpoint_part import digest, read_part, to_tensors, write_part
from gsdist.training.config import ResidualPolicy

__all__ = ["CheckpointStore", "Loaded", "Manifest"]

_FORMAT = 2
_MANIFEST = "manifest.json"
_REPLICATED = "replicated"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Describe a complete checkpoint."""

    path: Path
    step: int
    world_size: int
    config_hash: str
    """Fingerprint of the settings that decide the course of the run."""
    config: Mapping[str, Any]
    """Those settings."""
    files: Mapping[str, tuple[int, str]]
    """Size and SHA-256 of each file, by its path inside."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """Hold what a rank reads back; tensors on the CPU."""

    replicated: dict[str, Any]
    own: dict[str, Any] | None = None
    """What this rank saved; None at another world size, and where residuals are reset."""
    first: dict[str, Any] | None = None
    """At another world size what rank 0 saved, for what is alike on all ranks."""
    inherited: tuple[dict[str, Any], ...] = ()
    """At another world size what those ranks saved from which this one takes over, r, r+P, r+2P, ..."""


class CheckpointStore:
    """Keep the newest checkpoints of one run in a directory. All methods must be called on every rank."""

    def __init__(
        self,
        directory: Path,
        *,
        keep: int,
        config: Mapping[str, Any],
        config_hash: str,
        residual: ResidualPolicy = "redistribute",
        asynchronous: bool = False,
    ) -> None:
        """Write nothing yet. Collectives: if `asynchronous`, creates a process group."""
        self._directory = directory
        self._keep = keep
        self._config = config
        self._config_hash = config_hash
        self._residual = residual
        self._group = open_group() if asynchronous else None
        self._writer = ThreadPoolExecutor(1, "gsdist-checkpoint") if asynchronous else None
        self._writing: Future[None] | None = None

    def save(self, step: int, *, replicated: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """Write a checkpoint, beside what follows if asynchronous. Deletes the oldest ones beyond `keep`.

        Args:
            step: steps done.
            replicated: nested dicts, lists and tuples of tensors and plain values, equal on all ranks.
            own: the same for what belongs to this rank alone.

        Raises:
            CheckpointError: on every rank, when any rank cannot write, or could not the time before.

        Collectives: three agreements.
        """
        self.finish()
        parts = {f"rank-{dist.get_rank():05d}": to_tensors(own)}
        if dist.get_rank() == 0:
            parts[_REPLICATED] = to_tensors(replicated)
        if self._writer is None:
            self._write(step, parts)
        else:
            copies = {
                name: {key: tensor.to("cpu", copy=True) for key, tensor in part.items()}
                for name, part in parts.items()
            }
            self._writing = self._writer.submit(self._write, step, copies)

    def finish(self) -> None:
        """Wait for a checkpoint that is still being written. Raises as `save`."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, step: int, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        partial = self._directory / f".partial-step-{step:09d}"
        try:
            self._write_to(partial, step, parts)
        except CheckpointError:  # a full disk must not be filled further by what is of no use
            if dist.get_rank() == 0:
                shutil.rmtree(partial, ignore_errors=True)
            raise

    def _write_to(
        self, partial: Path, step: int, parts: Mapping[str, Mapping[str, Tensor]]
    ) -> None:
        self._on_rank_zero(lambda: _make_empty(partial), f"cannot prepare {partial}")
        files: dict[str, list[Any]] = {}
        with share_faults(self._group, kind=CheckpointError):
            for name, tensors in parts.items():
                written = write_part(partial / name, tensors)
                files |= {f"{name}/{file}": entry for file, entry in written.items()}
        everything = {k: v for one in gather_json(files, self._group) for k, v in one.items()}
        self._on_rank_zero(
            lambda: self._publish(partial, step, everything), f"cannot complete {partial}"
        )

    def newest(self) -> Manifest | None:
        """Return the newest complete checkpoint; all ranks get rank 0's answer.

        Raises:
            CheckpointError: it was written by a run with other settings, or by another number of workers and
                the policy is "refuse".

        Collectives: two agreements.
        """
        found = self._find() if dist.get_rank() == 0 else None
        name = gather_json(found.path.name if found else None)[0]
        if name is None:
            return None
        with share_faults(kind=CheckpointError):
            manifest = _read_manifest(self._directory / name)
            if manifest is None:
                raise CheckpointError(
                    f"rank {dist.get_rank()}/{dist.get_world_size()}: cannot see {self._directory / name}, "
                    "which rank 0 found; put checkpoint_dir on a file system that all workers share"
                )
            self._check(manifest)
        return manifest

    def load(self, manifest: Manifest) -> Loaded:
        """Read a checkpoint after checking its files' digests.

        Raises:
            CheckpointError: on every rank, when any rank cannot read its part or finds it damaged.

        Collectives: one agreement.
        """
        with share_faults(kind=CheckpointError):
            replicated = _read_checked(manifest, _REPLICATED)
            if self._residual == "reset":
                return Loaded(replicated=replicated)
            rank, world_size = dist.get_rank(), dist.get_world_size()
            if manifest.world_size == world_size:
                return Loaded(replicated=replicated, own=_read_checked(manifest, rank))
            ranks = range(rank, manifest.world_size, world_size)
            return Loaded(
                replicated=replicated,
                first=_read_checked(manifest, 0),
                inherited=tuple(_read_checked(manifest, one) for one in ranks),
            )

    def _check(self, manifest: Manifest) -> None:
        world_size = dist.get_world_size()
        if manifest.world_size != world_size and self._residual == "refuse":
            raise CheckpointError(
                f"checkpoint {manifest.path} was written by {manifest.world_size} worker(s) and this run has "
                f"{world_size}; it holds each worker's residual: start {manifest.world_size} worker(s), or "
                'set residual to "redistribute" or "reset"'
            )
        if manifest.config_hash != self._config_hash:
            differing = [
                f"{name} was {manifest.config.get(name)!r} and is now {self._config.get(name)!r}"
                for name in sorted({*manifest.config, *self._config})
                if manifest.config.get(name) != self._config.get(name)
            ]
            more = f"; and {len(differing) - 4} more" if len(differing) > 4 else ""
            raise CheckpointError(
                f"checkpoint {manifest.path} belongs to a run with other settings: "
                f"{'; '.join(differing[:4])}{more}; use those settings, or another checkpoint_dir"
            )

    def _on_rank_zero(self, action: Callable[[], None], what: str) -> None:
        """Run the action on rank 0 and raise on every rank when it fails."""
        failure = None
        if dist.get_rank() == 0:
            try:
                action()
            except OSError as error:
                failure = str(error)
        failure = gather_json(failure, self._group)[0]
        if failure is not None:
            raise CheckpointError(f"{what}: {failure}")

    def _publish(self, partial: Path, step: int, files: Mapping[str, list[Any]]) -> None:
        missing = sorted(name for name in files if not (partial / name).exists())
        if missing:
            raise OSError(
                f"rank 0 cannot see {', '.join(missing)}; put checkpoint_dir on a file system that all "
                "workers share"
            )
        manifest = {
            "format": _FORMAT,
            "step": step,
            "world_size": dist.get_world_size(),
            "config_hash": self._config_hash,
            "config": dict(self._config),
            "files": files,
        }
        with (partial / _MANIFEST).open("w") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        final = self._directory / f"step-{step:09d}"
        if final.exists():  # an incomplete one, or this very step after a resume
            shutil.rmtree(final)
        os.rename(partial, final)
        _sync_directory(self._directory)
        self._prune()

    def _prune(self) -> None:
        for path in self._directory.glob(".partial-step-*"):  # of a save that a crash cut off
            shutil.rmtree(path, ignore_errors=True)
        complete = [path for path in self._candidates() if _read_manifest(path) is not None]
        for path in complete[self._keep :]:
            try:
                shutil.rmtree(path)
            except OSError as error:
                _logger.warning("cannot delete old checkpoint %s: %s", path, error)

    def _find(self) -> Manifest | None:
        for path in self._candidates():
            manifest = _read_manifest(path)
            if manifest is not None:
                return manifest
            _logger.warning("ignoring incomplete checkpoint %s", path)
        return None

    def _candidates(self) -> list[Path]:
        return sorted(self._directory.glob("step-*"), reverse=True)


def _read_checked(manifest: Manifest, part: int | str) -> dict[str, Any]:
    """Read one part whose files are what the manifest says."""
    name = part if isinstance(part, str) else f"rank-{part:05d}"
    writer = 0 if isinstance(part, str) else part
    for path, (_, expected) in manifest.files.items():
        if path.startswith(f"{name}/"):
            try:
                found = digest(manifest.path / path)
            except OSError as error:
                found = str(error)
            if found != expected:
                way_out = "" if isinstance(part, str) else ', or set residual to "reset"'
                raise CheckpointError(
                    f"{manifest.path / path}, written by rank {writer}, is damaged: its SHA-256 is {found}, "
                    f"the manifest says {expected}; delete {manifest.path} to continue from an older "
                    f"checkpoint{way_out}"
                )
    return read_part(manifest.path / name)


def _read_manifest(path: Path) -> Manifest | None:
    """Return the manifest when the checkpoint is complete."""
    try:
        content = json.loads((path / _MANIFEST).read_text())
        if content["format"] != _FORMAT:
            return None
        files = {name: (int(size), str(sha)) for name, (size, sha) in content["files"].items()}
        if any((path / name).stat().st_size != size for name, (size, _) in files.items()):
            return None
        return Manifest(
            path=path,
            step=content["step"],
            world_size=content["world_size"],
            config_hash=content["config_hash"],
            config=content["config"],
            files=files,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _make_empty(directory: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(directory)
    directory.mkdir(parents=True)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
