"""Talk to the kernel: `ip`, `tc` and `bridge`, namespaces entered by a thread, interface offloads."""

import ctypes
import errno
import fcntl
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from benchmarks.netlab.errors import LabError, LabUnavailable

__all__ = [
    "batch",
    "in_namespace",
    "read",
    "require_rights_and_tools",
    "switch_offloads_off",
    "write_sysctls",
]

_T = TypeVar("_T")
_NAMESPACES = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_SIOCETHTOOL = 0x8946
_ETHTOOL_SETTERS = {"TSO": 0x1F, "GSO": 0x24, "GRO": 0x2C}
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}
_COMMAND_SECONDS = 20
_WAY_OUT = (
    "Run as root (in a container: --privileged), or in a user namespace where the kernel allows them: "
    "unshare --user --map-root-user --net --mount sh -c 'mount -t tmpfs tmpfs /run && COMMAND'. "
    "The tools are in the package iproute2 (on Fedora: iproute, iproute-tc)."
)


def require_rights_and_tools() -> None:
    """Check that network namespaces can be made here.

    Raises:
        LabUnavailable: naming everything that is missing and the way out.
    """
    if not sys.platform.startswith("linux"):
        raise LabUnavailable(f"A network lab needs Linux; this is {sys.platform}.")
    missing = [f"the command `{tool}`" for tool in ("ip", "tc", "bridge") if not shutil.which(tool)]
    if not Path("/proc/self/ns/net").exists():
        missing.append("network namespaces in the kernel")
    effective = re.search(r"^CapEff:\s*(\w+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    held = int(effective[1], 16) if effective else 0
    missing += [f"the right {name}" for name, bit in _CAPABILITIES.items() if not held >> bit & 1]
    if missing:
        raise LabUnavailable(
            f"A network lab cannot be made here: missing {', '.join(missing)}. {_WAY_OUT}"
        )


def read(*command: str, check: bool = True) -> str:
    """Run a command to its end and return what it wrote.

    Raises:
        LabError: when it fails (unless `check` is off) or takes longer than 20 seconds.
    """
    return _execute(command, "", check)


def batch(tool: str, lines: Iterable[str], *, namespace: str) -> None:
    """Run lines of `ip`, `tc` or `bridge` inside a namespace by one process.

    Raises:
        LabError: naming the line that failed.
    """
    text = "\n".join(lines)
    if text:
        _execute((tool, "-n", namespace, "-batch", "-"), text + "\n", True)


def _execute(command: tuple[str, ...], text: str, check: bool) -> str:
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
            # Ctrl-C in a terminal would otherwise kill the commands that clean up
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"`{' '.join(command)}` did not end in {_COMMAND_SECONDS} s") from error
    if check and done.returncode:
        failed = re.search(r"Command failed -:(\d+)", done.stderr)
        line = f" at `{text.splitlines()[int(failed[1]) - 1]}`" if failed else ""
        raise LabError(f"`{' '.join(command)}` failed{line}: {done.stderr.strip()}")
    return done.stdout


def in_namespace(namespace: str, function: Callable[[], _T]) -> _T:
    """Call a function in a thread that lives in a network namespace; sockets it makes stay there."""
    results: list[_T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            _enter(namespace)
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _enter(namespace: str) -> None:
    # os.setns came with Python 3.12
    library = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(_NAMESPACES / namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if library.setns(descriptor, _CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, f"{os.strerror(number)} (entering {namespace})")
    finally:
        os.close(descriptor)


def write_sysctls(namespace: str, values: dict[str, str]) -> None:
    """Write settings below /proc/sys/net of one namespace; those this kernel does not have are left out.

    Raises:
        LabError: when they may not be written.
    """

    def write() -> None:
        for name, value in values.items():
            path = Path("/proc/sys/net", name)
            try:
                path.write_text(value)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise LabError(
                    f"{path} cannot be set to {value!r} inside the lab ({error.strerror}); in a container "
                    "/proc/sys must be writable: docker run --privileged"
                ) from error

    in_namespace(namespace, write)


def switch_offloads_off(namespace: str, interfaces: Iterable[str]) -> None:
    """Switch TSO, GSO and GRO of a namespace's interfaces off, by the ioctl `ethtool -K` uses.

    Raises:
        LabError: when the kernel refuses.
    """

    def switch() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
            for interface in interfaces:
                for offload, number in _ETHTOOL_SETTERS.items():
                    _ethtool(handle, interface, offload, number)

    in_namespace(namespace, switch)


def _ethtool(handle: socket.socket, interface: str, offload: str, number: int) -> None:
    value = ctypes.create_string_buffer(struct.pack("II", number, 0))
    request = struct.pack("16sP16x", interface.encode(), ctypes.addressof(value))
    try:
        fcntl.ioctl(handle, _SIOCETHTOOL, request)
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, str(error.errno))
        raise LabError(f"{offload} of {interface} cannot be switched off: {name}") from error
