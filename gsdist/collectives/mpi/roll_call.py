"""Find out which ranks have not come to a collective that does not end."""

import time

from torch._C._distributed_c10d import Store

__all__ = ["RollCall"]

_PATIENCE = 2.0
_ASKED = "gsdist/roll call"


class RollCall:
    """Ask and answer over the key-value store of a process group, which does not depend on MPI."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        """Answer for one rank of the group."""
        self._store = store
        self._rank = rank
        self._size = size

    def answer(self, number: int) -> None:
        """Say that this rank waits in the group's collective of that number, if anybody has asked."""
        if self._store.check([_ASKED]):
            self._store.set(self._key(number, self._rank), "here")

    def absentees(self, number: int) -> list[int]:
        """Ask all ranks; return those that do not answer for this collective within two seconds.

        Blocks for longer when the store does not answer.
        """
        self._store.set(_ASKED, "yes")
        self.answer(number)
        time.sleep(_PATIENCE)
        ranks = range(self._size)
        return [rank for rank in ranks if not self._store.check([self._key(number, rank)])]

    @staticmethod
    def _key(number: int, rank: int) -> str:
        return f"{_ASKED}/{number}/{rank}"
