"""What a measurement ran on, so that its numbers can be judged and repeated."""

import datetime
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _native_build() -> dict[str, object]:
    try:
        from gsdist import _native
    except ImportError:
        return {"compiler": None, "simd_level": None}
    info = _native.build_info()
    return {"compiler": info["compiler"], "simd_level": info["simd_level"]}


def _without_folders(argument: str) -> str:
    """Shorten an absolute path, NAME= before it or not: which folder of whose machine it was helps no one."""
    name, equals, value = argument.rpartition("=")
    path = Path(value)
    if not path.is_absolute():
        return argument
    return name + equals + str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name)


def describe(threads: int) -> dict[str, object]:
    """Return the environment of a measurement on `threads` threads, ready for JSON."""
    changes = _git("status", "--porcelain")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(
            [Path(sys.executable).name, *map(_without_folders, sys.orig_argv[1:])]
        ),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if changes is None else changes != "",
        "python": platform.python_version(),
        "torch": _version("torch"),
        "numpy": _version("numpy"),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "threads": threads,
        **_native_build(),
    }
