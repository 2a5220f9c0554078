"""Meet the other ranks at MASTER_ADDR:MASTER_PORT, and say who has not come.

As torch's `env://`, under torchrun too, where its agent keeps the store. But rank 0 does not listen before
it has looked, and a deadline that passes names the ranks that are missing.
"""

import os
import socket
import time
from contextlib import suppress
from datetime import timedelta
from ipaddress import ip_address

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from gsdist.errors import CollectiveTimeout, ConfigError

__all__ = ["meet"]

_POLL_SECONDS = 0.05
_SHOWN = 8


def meet(rank: int, world_size: int, timeout: timedelta) -> Store:
    """Wait until all ranks have arrived and return the store they share.

    Raises:
        CollectiveTimeout: not all came in time; says how many have and which are missing.
        ConfigError: MASTER_PORT is no port, or something else listens there.
    """
    address, port = os.environ["MASTER_ADDR"], _port()
    where = f"{address}:{port}"
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    serves = rank == 0 and not by_agent
    listener = _listen(address, port) if serves else None
    try:
        tcp_store = TCPStore(
            address,
            port,
            world_size,
            is_master=serves,
            timeout=timeout,
            wait_for_workers=False,
            master_listen_fd=listener.detach() if listener else None,
        )
    except (dist.DistError, RuntimeError) as error:
        raise CollectiveTimeout(
            f"rank {rank}/{world_size}: nobody answers at MASTER_ADDR:MASTER_PORT={where} within "
            f"{timeout.total_seconds():g} s; check the address, that rank 0 was started, and that no "
            f"firewall is between ({error})"
        ) from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"gsdist/attempt-{attempt}", tcp_store)
    _wait_for_all(store, rank, world_size, timeout, where)
    return store


def _wait_for_all(store: Store, rank: int, world_size: int, timeout: timedelta, where: str) -> None:
    store.set(f"arrived/{rank}", "yes")
    missing = set(range(world_size)) - {rank}
    limit = time.monotonic() + timeout.total_seconds()
    try:
        while missing:
            missing = {one for one in missing if not store.check([f"arrived/{one}"])}
            if missing and time.monotonic() > limit:
                raise CollectiveTimeout(
                    f"rank {rank}/{world_size}: {world_size - len(missing)} of {world_size} ranks arrived at "
                    f"{where} within {timeout.total_seconds():g} s; missing: {_listed(missing)}. Check that "
                    "they were started with the same WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
                )
            time.sleep(_POLL_SECONDS)
    except (dist.DistError, RuntimeError) as error:
        if isinstance(error, CollectiveTimeout):
            raise
        raise CollectiveTimeout(
            f"rank {rank}/{world_size}: rank 0 at {where} left before all ranks had arrived; still missing "
            f"here: {_listed(missing)}; look at the first error among all ranks"
        ) from error
    # Rank 0's store must outlive the others' last look at it.
    store.add("seen", 1)
    if rank == 0:
        with suppress(RuntimeError):
            while store.add("seen", 0) < world_size and time.monotonic() < limit:
                time.sleep(_POLL_SECONDS)


def _listed(ranks: set[int]) -> str:
    shown = ", ".join(map(str, sorted(ranks)[:_SHOWN]))
    return f"{shown} and {len(ranks) - _SHOWN} more" if len(ranks) > _SHOWN else shown


def _port() -> int:
    text = os.environ["MASTER_PORT"]
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise ConfigError(f"MASTER_PORT={text!r} is no port; expected 1 to 65535")
    return int(text)


def _listen(address: str, port: int) -> socket.socket:
    """Listen where the user has said, and on all interfaces only if a name was given.

    A name may resolve to this machine's loopback here and to its network elsewhere.
    """
    family, bound = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET, ""
    with suppress(ValueError):
        family = socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET
        bound = address
    if address == "localhost":
        family, bound = socket.AF_INET, "127.0.0.1"
    try:
        return socket.create_server(
            (bound, port),
            family=family,
            backlog=1024,
            dualstack_ipv6=family == socket.AF_INET6 and not bound,
        )
    except OSError as error:
        raise ConfigError(
            f"rank 0 cannot listen at MASTER_ADDR:MASTER_PORT={address}:{port}: {error.strerror}; give the "
            "address of rank 0's machine and a free port"
        ) from error
