"""Keep processes that load data from holding this worker's connections.

They are forked, and with them every socket to the other workers. While one is left open anywhere, a worker
that died looks alive to its peers until the deadline.
"""

import os
import signal
import socket
import stat
from pathlib import Path

__all__ = ["close_inherited_connections"]


def close_inherited_connections(worker: int = 0) -> None:
    """Close all internet sockets of this process; torch's loader itself uses pipes and local ones.

    To be a DataLoader's worker_init_fn, hence the argument.
    """
    signal.set_wakeup_fd(-1)  # where the training process hears of its own signals
    for name in os.listdir("/proc/self/fd") if Path("/proc/self/fd").is_dir() else []:
        descriptor = int(name)
        try:
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            connection = socket.socket(fileno=os.dup(descriptor))
        except OSError:  # closed in the meantime: it was that of the listing
            continue
        family = connection.family
        connection.close()
        if family in (socket.AF_INET, socket.AF_INET6):
            os.close(descriptor)
