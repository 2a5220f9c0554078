"""Save a run so that it can go on with the same bits, and find the newest save that is whole.

A checkpoint is a directory `step-<number>` written by torch.distributed.checkpoint. Replicated state lies
under `replicated/`, written by rank 0; what differs between ranks lies under `rank/<rank>/`, written by each.
All of it is tensors: values that are none travel as bytes of `torch.save` and are read with weights_only.

A save goes to a hidden directory first. When all ranks have written, rank 0 adds `manifest.json`, which names
every file with its size, and renames the directory. What a crash leaves behind is therefore hidden or does
not match its manifest, and is passed over; there is no pointer file that could be lost. All ranks must see
the same directory.
"""

import io
import json
import logging
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import metadata as metadata_module
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from gsdist.collectives import gather_json, share_faults
from gsdist.errors import CheckpointError

__all__ = ["CheckpointStore", "Manifest"]

_FORMAT = 1
_MANIFEST = "manifest.json"
_VALUES = "values"
_TENSOR = "__tensor__"
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


class CheckpointStore:
    """Keep the newest checkpoints of one run in a directory."""

    def __init__(
        self, directory: Path, *, keep: int, config: Mapping[str, Any], config_hash: str
    ) -> None:
        self._directory = directory
        self._keep = keep
        self._config = config
        self._config_hash = config_hash

    def save(self, step: int, *, replicated: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """Write a checkpoint; all ranks call it. Deletes the oldest ones beyond `keep`.

        Args:
            step: steps done.
            replicated: nested dicts, lists and tuples of tensors and plain values, equal on all ranks.
            own: the same for what belongs to this rank alone.

        Raises:
            CheckpointError: on every rank, when any rank cannot write.

        Collectives: those of torch.distributed.checkpoint.save, and two agreements.
        """
        partial = self._directory / f".partial-step-{step:09d}"
        _on_rank_zero(lambda: _make_empty(partial), f"cannot prepare {partial}")
        entries = _to_tensors(own, f"rank/{dist.get_rank()}")
        if dist.get_rank() == 0:
            entries |= _to_tensors(replicated, "replicated")
        try:
            save(entries, storage_writer=FileSystemWriter(partial))
        except CheckpointException as error:
            raise CheckpointError(f"cannot write checkpoint {partial}: {_reason(error)}") from error
        _on_rank_zero(lambda: self._publish(partial, step), f"cannot complete {partial}")

    def newest(self) -> Manifest | None:
        """Return the newest complete checkpoint; all ranks call it and get rank 0's answer.

        Raises:
            CheckpointError: it was written by another number of workers, or by a run with other settings.

        Collectives: two agreements.
        """
        found = self._find() if dist.get_rank() == 0 else None
        name = gather_json(found.path.name if found else None)[0]
        if name is None:
            return None
        with share_faults():
            manifest = _read_manifest(self._directory / name)
            if manifest is None:
                raise CheckpointError(
                    f"rank {dist.get_rank()}/{dist.get_world_size()}: cannot see {self._directory / name}, "
                    "which rank 0 found; put checkpoint_dir on a file system that all workers share"
                )
            self._check(manifest)
        return manifest

    def load(self, manifest: Manifest) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a checkpoint; all ranks call it. Returns (replicated, own), tensors on the CPU.

        Raises:
            CheckpointError: on every rank, when any rank cannot read its part.

        Collectives: those of torch.distributed.checkpoint.load.
        """
        prefixes = ("replicated", f"rank/{dist.get_rank()}")
        reader = _SafeReader(manifest.path)
        try:
            entries = _empty_tensors(reader.read_metadata(), prefixes)
            load(entries, storage_reader=reader)
        except (CheckpointException, OSError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"cannot read checkpoint {manifest.path}: {_reason(error)}; delete it to continue from an "
                "older one"
            ) from error
        replicated, own = (_from_tensors(entries, prefix) for prefix in prefixes)
        return replicated, own

    def _check(self, manifest: Manifest) -> None:
        world_size = dist.get_world_size()
        if manifest.world_size != world_size:
            raise CheckpointError(
                f"checkpoint {manifest.path} was written by {manifest.world_size} worker(s) and this run has "
                f"{world_size}; it holds each worker's residual, so start {manifest.world_size} worker(s)"
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

    def _publish(self, partial: Path, step: int) -> None:
        metadata = _SafeReader(partial).read_metadata()
        expected = {info.relative_path for info in metadata.storage_data.values()}
        missing = sorted(name for name in expected if not (partial / name).exists())
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
            "files": {path.name: path.stat().st_size for path in sorted(partial.iterdir())},
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


class _SafeReader(FileSystemReader):
    """Read the metadata without executing anything: only its own classes are unpickled."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata = _MetadataUnpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(".metadata holds no checkpoint metadata")
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    _ALLOWED = frozenset(
        {
            ("pathlib", "Path"),
            ("pathlib", "PosixPath"),
            ("torch", "Size"),
            ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
            ("torch.serialization", "_get_layout"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        if (module, name) in self._ALLOWED or isinstance(found, torch.dtype):
            return found
        if isinstance(found, type) and found.__module__ == metadata_module.__name__:
            return found
        raise pickle.UnpicklingError(
            f".metadata refers to {module}.{name}, which does not belong there"
        )


def _read_manifest(path: Path) -> Manifest | None:
    """Return the manifest when the checkpoint is complete."""
    try:
        content = json.loads((path / _MANIFEST).read_text())
        if content["format"] != _FORMAT:
            return None
        if any((path / name).stat().st_size != size for name, size in content["files"].items()):
            return None
        return Manifest(
            path=path,
            step=content["step"],
            world_size=content["world_size"],
            config_hash=content["config_hash"],
            config=content["config"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _on_rank_zero(action: Callable[[], None], what: str) -> None:
    """Run the action on rank 0 and raise on every rank when it fails."""
    failure = None
    if dist.get_rank() == 0:
        try:
            action()
        except OSError as error:
            failure = str(error)
    failure = gather_json(failure)[0]
    if failure is not None:
        raise CheckpointError(f"{what}: {failure}")


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


def _reason(error: BaseException) -> str:
    if isinstance(error, CheckpointException):
        return "; ".join(f"rank {rank}: {wrapped[0]}" for rank, wrapped in error.failures.items())
    return str(error)


def _to_tensors(tree: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    """Flatten a tree into tensors by path, its other values into one tensor of bytes."""
    tensors: dict[str, Tensor] = {}

    def strip(node: Any, path: str) -> Any:
        if isinstance(node, Tensor):
            tensors[path] = node.detach()
            return {_TENSOR: path}
        if isinstance(node, Mapping):
            return {key: strip(value, f"{path}/{key}") for key, value in node.items()}
        if isinstance(node, list | tuple):
            return type(node)(strip(value, f"{path}/{i}") for i, value in enumerate(node))
        return node

    buffer = io.BytesIO()
    torch.save(strip(tree, prefix), buffer)
    tensors[f"{prefix}/{_VALUES}"] = torch.frombuffer(
        bytearray(buffer.getvalue()), dtype=torch.uint8
    )
    return tensors


def _from_tensors(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Put together again what `_to_tensors` took apart."""

    def restore(node: Any) -> Any:
        if isinstance(node, dict):
            if set(node) == {_TENSOR}:
                return tensors[node[_TENSOR]]
            return {key: restore(value) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return type(node)(restore(value) for value in node)
        return node

    packed = tensors[f"{prefix}/{_VALUES}"]
    tree = torch.load(io.BytesIO(packed.numpy().tobytes()), map_location="cpu", weights_only=True)
    restored: dict[str, Any] = restore(tree)
    return restored


def _empty_tensors(metadata: Metadata, prefixes: tuple[str, ...]) -> dict[str, Any]:
    """Allocate what is stored under the prefixes."""
    return {
        key: torch.empty(stored.size, dtype=stored.properties.dtype)
        for key, stored in metadata.state_dict_metadata.items()
        if key.startswith(tuple(f"{prefix}/" for prefix in prefixes))
        and isinstance(stored, TensorStorageMetadata)
    }
