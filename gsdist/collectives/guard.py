"""Watch over a collective: remember it, and let a failure say who is missing."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from gsdist.collectives.flight_recorder import FLIGHT_RECORDER
from gsdist.collectives.ranks import rank_of
from gsdist.errors import CollectiveError, CollectiveTimeout, GsdistError, PeerLost

__all__ = ["guarded", "transport_failures"]

_TIMED_OUT = re.compile(r"time[d]?[ -]?out|deadline", re.IGNORECASE)
_LOST = re.compile(
    r"connection (closed|reset|refused)|broken pipe|socket (closed|error)|remote process|"
    r"unexpected EOF|no route to host|network is unreachable",
    re.IGNORECASE,
)
_TRANSPORT = re.compile(r"gloo|nccl|ProcessGroup|TCPStore|connectFullMesh", re.IGNORECASE)
_ROLL_CALL_SECONDS = 2.0
_STORE_SECONDS = 0.5
_POLL_SECONDS = 0.02


class guarded:  # named like the functions of contextlib, whose machinery would cost three times as much
    """Remember the collective on `buffer` inside, and raise its failure as gsdist's.

    After a failure the group must not be used again: its messages no longer match.

    Raises:
        CollectiveTimeout: the deadline passed.
        PeerLost: a peer's connection broke.
        CollectiveError: the backend failed otherwise.
    """

    __slots__ = ("_buffer", "_entry", "_group")

    def __init__(self, buffer: Tensor, group: dist.ProcessGroup | None, phase: str) -> None:
        self._buffer, self._group = buffer, group
        self._entry = FLIGHT_RECORDER.begin(phase, buffer.nbytes)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        entry, buffer = self._entry, self._buffer
        if error is None:
            FLIGHT_RECORDER.finish(entry)
        elif isinstance(error, RuntimeError):
            FLIGHT_RECORDER.finish(entry, failure=str(error))
            what = f"{entry.phase} failed on {buffer.numel()} x {buffer.dtype}"
            raise _translated(error, self._group, what, entry.seconds) from error


@contextmanager
def transport_failures(phase: str, group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """Turn what a backend raises inside, outside of gsdist's own collectives, into gsdist's errors.

    For DDP's broadcasts, collectives of a model's own, and messages about errors. Other errors pass.

    Raises:
        CollectiveError: or one of its kinds, as `guarded`.
    """
    try:
        yield
    except GsdistError:
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not _TRANSPORT.search(str(error)):
            raise
        raise _translated(error, group, f"{phase} failed", None) from error


def _translated(
    error: RuntimeError, group: dist.ProcessGroup | None, what: str, seconds: float | None
) -> CollectiveError:
    text = str(error)
    kind, cause = CollectiveError, "the backend failed"
    if _TIMED_OUT.search(text):
        kind, cause = CollectiveTimeout, "the deadline has passed"
    elif _LOST.search(text):
        kind, cause = PeerLost, "a peer's connection broke"
    FLIGHT_RECORDER.dump(what)
    after = "" if seconds is None else f" after {seconds:.1f} s"
    return kind(
        f"rank {rank_of(group)}/{dist.get_world_size(group)}: {what}{after}: {cause}; "
        f"{_call_roll(group)} Backend: {text.splitlines()[0] if text else type(error).__name__}"
    )


# ---- who is missing --------------------------------------------------------------------------------------


def _call_roll(group: dist.ProcessGroup | None) -> str:
    """Leave word in the store, wait a moment for that of the others, and say who has left none.

    A rank that is dead or stopped cannot leave word, and one that is busy elsewhere has not failed.
    """
    if not _known_to_torch(group):
        return "look at the first error among all ranks."
    own = dist.get_rank()
    unheard = set(dist.get_process_group_ranks(group)) - {own}
    words: dict[int, str] = {}
    # In a thread: the store's server may be a process that is stopped, and then no call to it returns.
    caller = Thread(target=_exchange_words, args=(own, unheard, words), daemon=True)
    caller.start()
    caller.join(_ROLL_CALL_SECONDS + _STORE_SECONDS)
    if not unheard:
        return "all ranks have noticed, look at the first error among them."
    heard = "".join(
        f"; rank {rank} failed in {text}" for rank, text in sorted(words.copy().items())
    )
    return (
        f"no sign of life of rank(s) {', '.join(map(str, sorted(unheard.copy())))} within "
        f"{_ROLL_CALL_SECONDS:g} s{heard}. Look there first."
    )


def _exchange_words(own: int, unheard: set[int], words: dict[int, str]) -> None:
    last = FLIGHT_RECORDER.last()
    with suppress(RuntimeError, ValueError):  # the store is gone with its rank
        store: Any = distributed_c10d._get_default_store()  # torch offers no public way to it
        store.set(_key(own), json.dumps(last.phase if last else "no collective yet"))
        limit = time.monotonic() + _ROLL_CALL_SECONDS
        while unheard and time.monotonic() < limit:
            for rank in sorted(unheard):
                if store.check([_key(rank)]):
                    words[rank] = json.loads(store.get(_key(rank)))
                    unheard.discard(rank)
            time.sleep(_POLL_SECONDS)


def _key(rank: int) -> str:
    return f"gsdist/failed/{rank}"


def _known_to_torch(group: dist.ProcessGroup | None) -> bool:
    with suppress(ValueError, KeyError, RuntimeError):
        return bool(dist.get_process_group_ranks(group))
    return False
