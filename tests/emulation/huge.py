"""Arrays that exist as addresses only, and launchers that run the thread blocks at their ends."""

import mmap

import torch

from tests.emulation.cases import THREADS
from tests.emulation.launcher import EmulatedLauncher


def reserved(count, dtype):
    """Return a tensor of zeros whose memory the system hands out page by page, where it is used."""
    without_reserve = getattr(mmap, "MAP_NORESERVE", 0x4000)  # has a name from Python 3.13 on
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | without_reserve
    memory = mmap.mmap(-1, count * dtype.itemsize, flags=flags)
    return torch.frombuffer(memory, dtype=dtype)


def ending_with(tail, count):
    """Return reserved zeros that end with `tail`."""
    values = reserved(count, tail.dtype)
    values[-len(tail) :] = tail
    return values


def blocks_for(items):
    return -(-items // THREADS)


class LastBlocks(EmulatedLauncher):
    """Run only the last two thread blocks of every kernel."""

    def launch(self, kernel, thread_blocks, arguments):
        self.launch_part(kernel, thread_blocks, thread_blocks - 2, thread_blocks, arguments)


class BlockAt(EmulatedLauncher):
    """Run only the thread block that, going round, comes to an item."""

    def __init__(self, item):
        super().__init__()
        self._item = item

    def launch(self, kernel, thread_blocks, arguments):
        block = self._item // THREADS % thread_blocks
        self.launch_part(kernel, thread_blocks, block, block + 1, arguments)
