"""Write nested state to a directory by torch.distributed.checkpoint, and read it back safely.

All of it is tensors: values that are none travel as bytes of `torch.save` and are read with weights_only.
Nothing here communicates; every directory has one writer.
"""

import hashlib
import io
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import metadata as metadata_module
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from gsdist.errors import CheckpointError

__all__ = ["digest", "read_part", "to_tensors", "write_part"]

# each part has one writer on purpose
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable")

_VALUES = "values"
_TENSOR = "__tensor__"


def write_part(directory: Path, tensors: Mapping[str, Tensor]) -> dict[str, list[Any]]:
    """Write what `to_tensors` returned; return size and digest of each file by its name.

    Raises:
        CheckpointError: it cannot be written.
    """
    try:
        save(dict(tensors), storage_writer=FileSystemWriter(directory), no_dist=True)
        return {
            path.name: [path.stat().st_size, digest(path)] for path in sorted(directory.iterdir())
        }
    except (CheckpointException, OSError, RuntimeError) as error:
        raise CheckpointError(f"cannot write checkpoint {directory}: {_reason(error)}") from error


def read_part(directory: Path) -> dict[str, Any]:
    """Return the state in a directory, tensors on the CPU.

    Raises:
        CheckpointError: it cannot be read.
    """
    reader = _SafeReader(directory)
    try:
        entries: dict[str, Any] = {
            key: torch.empty(stored.size, dtype=stored.properties.dtype)
            for key, stored in reader.read_metadata().state_dict_metadata.items()
            if isinstance(stored, TensorStorageMetadata)
        }
        load(entries, storage_reader=reader, no_dist=True)
        return _from_tensors(entries)
    except (CheckpointException, OSError, RuntimeError, KeyError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"cannot read checkpoint {directory}: {_reason(error)}; delete it to continue from an older one"
        ) from error


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: BaseException) -> str:
    if isinstance(error, CheckpointException):
        return "; ".join(str(wrapped[0]) for wrapped in error.failures.values())
    return str(error)


def to_tensors(tree: Mapping[str, Any]) -> dict[str, Tensor]:
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
    torch.save(strip(tree, "state"), buffer)
    tensors[_VALUES] = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
    return tensors


def _from_tensors(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Put together again what `to_tensors` took apart."""

    def restore(node: Any) -> Any:
        if isinstance(node, dict):
            if set(node) == {_TENSOR}:
                return tensors[node[_TENSOR]]
            return {key: restore(value) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return type(node)(restore(value) for value in node)
        return node

    packed = tensors[_VALUES]
    tree = torch.load(io.BytesIO(packed.numpy().tobytes()), map_location="cpu", weights_only=True)
    restored: dict[str, Any] = restore(tree)
    return restored


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
        # what is refused must not be imported either
        listed = (module, name) in self._ALLOWED
        if listed or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        if module == metadata_module.__name__:
            found = super().find_class(module, name)
            if isinstance(found, type) and found.__module__ == module:
                return found
        raise pickle.UnpicklingError(
            f".metadata refers to {module}.{name}, which does not belong there"
        )
