"""Carry tensors between the ranks of one communicator: every operation, in MPI's words."""

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from itertools import accumulate
from typing import Any, Protocol

import torch
import torch.distributed as dist
from mpi4py import MPI
from torch import Tensor
from torch._C._distributed_c10d import Store

from gsdist.collectives.mpi.datatypes import buffer_of, reduction_of, require_reducible
from gsdist.collectives.mpi.roll_call import RollCall
from gsdist.collectives.mpi.runtime import Runtime
from gsdist.collectives.mpi.staging import Staging
from gsdist.collectives.mpi.work import MpiWork
from gsdist.errors import ConfigError, InputTypeError

__all__ = ["Transport"]

_NO_TIME = timedelta(0)


class Options(Protocol):
    """Say what c10d's options say of every collective."""

    timeout: timedelta
    """Its deadline; zero and less stand for the group's."""
    asyncOp: bool
    """Whether the caller goes on meanwhile; if not, it waits as soon as it has the work object."""


class Transport:
    """Be one rank of a communicator.

    Operations are checked and handed in at once, and run in order: on the group's communication thread, or at
    once where the caller waits anyway and nothing else is under way.
    """

    def __init__(
        self,
        ranks: Sequence[int],
        *,
        name: str,
        rank: int,
        size: int,
        timeout: timedelta,
        store: Store,
    ) -> None:
        """Make the communicator of some ranks (none means all); on all of them at the same time.

        The store of the group serves to name missing ranks.

        Raises:
            CollectiveError: not all of them came within the timeout.
            ConfigError: MPI counts the ranks of the job otherwise.
        """
        self._runtime = Runtime.start()
        self._name = name
        self.timeout = timeout
        self._communicator, *found = self._runtime.communicator_of(
            ranks, name, timeout.total_seconds()
        )
        if found != [rank, size]:
            raise ConfigError(
                f"rank {rank} of {size} is asked for, but MPI says rank {found[0]} of {found[1]}; start one "
                "process per rank with mpirun, and unset RANK and WORLD_SIZE if they are left from elsewhere"
            )
        self._rank, self._size = rank, size
        self._thread = self._runtime.thread(name)
        self._roll_call = RollCall(store, rank, size)
        self._collectives = 0

    # ---- reductions ---------------------------------------------------------------------------------

    def all_reduce(self, tensors: Sequence[Tensor], kind: Any, options: Options) -> MpiWork:
        """Reduce each tensor in place over all ranks."""
        staging = Staging()
        buffers = [staging.updated(tensor) for tensor in tensors]
        dtype = self._reduced_dtype(kind, tensors)
        return self._submit(
            "all_reduce",
            lambda: self._calls(
                "Allreduce",
                [
                    (MPI.IN_PLACE, buffer_of(buffer), reduction_of(kind, dtype))
                    for buffer in buffers
                ],
            ),
            staging,
            list(tensors),
            options,
            averaged=buffers if _is_average(kind) else (),
        )

    def reduce(self, tensor: Tensor, root: int, kind: Any, options: Options) -> MpiWork:
        """Reduce a tensor over all ranks, in place at the root; the others keep theirs."""
        staging = Staging()
        dtype = self._reduced_dtype(kind, [tensor])
        at_root = self._rank == root
        buffer = staging.updated(tensor) if at_root else staging.sent(tensor)

        def start() -> list[MPI.Request]:
            own = (MPI.IN_PLACE, buffer_of(buffer)) if at_root else (buffer_of(buffer), None)
            return self._calls("Reduce", [(*own, reduction_of(kind, dtype), root)])

        averaged = [buffer] if at_root and _is_average(kind) else []
        return self._submit("reduce", start, staging, [tensor], options, averaged=averaged)

    def reduce_scatter(
        self, output: Tensor, inputs: Sequence[Tensor], kind: Any, options: Options
    ) -> MpiWork:
        """Reduce the r-th tensor of all ranks to rank r; tensors may differ in size."""
        self._require_one_per_rank("reduce_scatter", "inputs", inputs)
        self._require_equal("reduce_scatter", inputs[self._rank], [output])
        staging = Staging()
        dtype = self._reduced_dtype(kind, [output, *inputs])
        joined, received = staging.joined(inputs), staging.received(output)
        counts = [tensor.numel() for tensor in inputs]
        return self._submit(
            "reduce_scatter",
            lambda: self._calls(
                "Reduce_scatter",
                [(buffer_of(joined), buffer_of(received), counts, reduction_of(kind, dtype))],
            ),
            staging,
            [output],
            options,
            averaged=[received] if _is_average(kind) else (),
        )

    def reduce_scatter_single(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], kind: Any, options: Options
    ) -> MpiWork:
        """Reduce each input over all ranks and keep the rank's own part of it, one of equal ones."""
        for output, given in zip(outputs, inputs, strict=True):
            self._require_whole("reduce_scatter_tensor", whole=given, part=output)
        staging = Staging()
        dtype = self._reduced_dtype(kind, [*outputs, *inputs])
        received = [staging.received(output) for output in outputs]
        sent = [
            staging.sent(given, apart_from=target)
            for given, target in zip(inputs, received, strict=True)
        ]
        return self._submit(
            "reduce_scatter_tensor",
            lambda: self._calls(
                "Reduce_scatter_block",
                [
                    (buffer_of(one, parts=self._size), buffer_of(other), reduction_of(kind, dtype))
                    for one, other in zip(sent, received, strict=True)
                ],
            ),
            staging,
            list(outputs),
            options,
            averaged=received if _is_average(kind) else (),
        )

    # ---- copies -------------------------------------------------------------------------------------

    def broadcast(self, tensor: Tensor, root: int, options: Options) -> MpiWork:
        """Copy the root's tensor to all ranks."""
        staging = Staging()
        at_root = self._rank == root
        buffer = staging.sent(tensor) if at_root else staging.received(tensor)
        return self._submit(
            "broadcast",
            lambda: self._calls("Bcast", [(buffer_of(buffer), root)]),
            staging,
            [tensor],
            options,
        )

    def all_gather(
        self,
        outputs: Sequence[Sequence[Tensor]],
        inputs: Sequence[Tensor],
        options: Options,
    ) -> MpiWork:
        """Copy each input of rank r to the r-th tensor of its outputs on all ranks."""
        staging = Staging()
        pairs = []
        for given, parts in zip(inputs, outputs, strict=True):
            self._require_one_per_rank("all_gather", "outputs", parts)
            self._require_equal("all_gather", given, parts)
            pairs.append((staging.sent(given), staging.received_jointly(parts)))
        return self._all_gather(pairs, staging, [list(parts) for parts in outputs], options)

    def all_gather_single(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], options: Options
    ) -> MpiWork:
        """Copy each input of rank r to the r-th of as many equal parts of its output as there are ranks."""
        staging = Staging()
        pairs = []
        for given, output in zip(inputs, outputs, strict=True):
            self._require_whole("all_gather_into_tensor", whole=output, part=given)
            received = staging.received(output)
            pairs.append((staging.sent(given, apart_from=received), received))
        return self._all_gather(pairs, staging, list(outputs), options)

    def _all_gather(
        self,
        pairs: Sequence[tuple[Tensor, Tensor]],
        staging: Staging,
        outputs: list[Any],
        options: Options,
    ) -> MpiWork:
        return self._submit(
            "all_gather",
            lambda: self._calls(
                "Allgather",
                [
                    (buffer_of(sent), buffer_of(received, parts=self._size))
                    for sent, received in pairs
                ],
            ),
            staging,
            outputs,
            options,
        )

    def gather(
        self, outputs: Sequence[Tensor], given: Tensor, root: int, options: Options
    ) -> MpiWork:
        """Copy the tensor of rank r to the r-th output of the root; the others give no outputs."""
        staging = Staging()
        sent = staging.sent(given)
        received = None
        if self._rank == root:
            self._require_one_per_rank("gather", "outputs", outputs)
            self._require_equal("gather", given, outputs)
            received = staging.received_jointly(outputs)

        def start() -> list[MPI.Request]:
            target = None if received is None else buffer_of(received, parts=self._size)
            return self._calls("Gather", [(buffer_of(sent), target, root)])

        return self._submit("gather", start, staging, list(outputs), options)

    def scatter(
        self, output: Tensor, inputs: Sequence[Tensor], root: int, options: Options
    ) -> MpiWork:
        """Copy the r-th input of the root to rank r; the others give no inputs."""
        staging = Staging()
        received = staging.received(output)
        sent = None
        if self._rank == root:
            self._require_one_per_rank("scatter", "inputs", inputs)
            self._require_equal("scatter", output, inputs)
            sent = staging.joined(inputs)

        def start() -> list[MPI.Request]:
            source = None if sent is None else buffer_of(sent, parts=self._size)
            return self._calls("Scatter", [(source, buffer_of(received), root)])

        return self._submit("scatter", start, staging, [output], options)

    def all_to_all(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], options: Options
    ) -> MpiWork:
        """Copy the s-th input of rank r to the r-th output of rank s; tensors may differ in size."""
        self._require_one_per_rank("all_to_all", "inputs", inputs)
        self._require_one_per_rank("all_to_all", "outputs", outputs)
        self._require_dtype("all_to_all", inputs[0], [*inputs, *outputs])
        staging = Staging()
        return self._all_to_all(
            (staging.joined(inputs), [tensor.numel() for tensor in inputs]),
            (staging.received_jointly(outputs), [tensor.numel() for tensor in outputs]),
            staging,
            list(outputs),
            options,
        )

    def all_to_all_single(
        self,
        output: Tensor,
        given: Tensor,
        output_rows: Sequence[int],
        input_rows: Sequence[int],
        options: Options,
    ) -> MpiWork:
        """Exchange parts of one tensor, of so many rows each; no numbers stand for equal parts."""
        self._require_dtype("all_to_all_single", given, [output])
        staging = Staging()
        received = staging.received(output)
        return self._all_to_all(
            (staging.sent(given, apart_from=received), self._part_sizes(given, input_rows)),
            (received, self._part_sizes(output, output_rows)),
            staging,
            [output],
            options,
        )

    def _all_to_all(
        self,
        sent: tuple[Tensor, Sequence[int]],
        received: tuple[Tensor, Sequence[int]],
        staging: Staging,
        outputs: list[Any],
        options: Options,
    ) -> MpiWork:
        return self._submit(
            "all_to_all",
            lambda: self._calls("Alltoallv", [(_parts_of(*sent), _parts_of(*received))]),
            staging,
            outputs,
            options,
        )

    # ---- single ranks, and none ---------------------------------------------------------------------

    def send(self, tensor: Tensor, target: int, tag: int) -> MpiWork:
        """Send a tensor to one rank."""
        staging = Staging()
        buffer = staging.sent(tensor)
        return self._submit(
            f"send to rank {target}",
            lambda: [self._communicator.Isend(buffer_of(buffer), target, tag)],
            staging,
            [tensor],
            None,
            collective=False,
        )

    def receive(self, tensor: Tensor, source: int | None, tag: int) -> MpiWork:
        """Receive a tensor from one rank, or from any."""
        staging = Staging()
        buffer = staging.received(tensor)
        rank = MPI.ANY_SOURCE if source is None else source
        return self._submit(
            f"receive from {'any rank' if source is None else f'rank {source}'}",
            lambda: [self._communicator.Irecv(buffer_of(buffer), rank, tag)],
            staging,
            [tensor],
            None,
            collective=False,
        )

    def barrier(self, options: Options) -> MpiWork:
        """Wait for all ranks."""
        return self._submit("barrier", lambda: self._calls("Barrier", [()]), Staging(), [], options)

    # ---- the end ------------------------------------------------------------------------------------

    def close(self) -> None:
        """Complete what was handed in and give thread and communicator back."""
        if self._communicator != MPI.COMM_NULL:
            self._thread.call(self._communicator.Free, self.timeout.total_seconds())
            self._runtime.release(self._thread)

    def abandon(self) -> None:
        """Make this process leave MPI without waiting for its peers."""
        self._runtime.abandon()

    # ---- parts --------------------------------------------------------------------------------------

    def _calls(self, name: str, calls: Iterable[tuple[Any, ...]]) -> list[MPI.Request]:
        """Call a collective of the communicator with each of some arguments.

        Blocking calls are up to twice as fast as those that begin an operation: Open MPI uses other
        algorithms for them.
        """
        if self._runtime.blocking:
            function = getattr(self._communicator, name)
            for arguments in calls:
                function(*arguments)
            return []
        begin = getattr(self._communicator, f"I{name.lower()}")
        return [begin(*arguments) for arguments in calls]

    def _submit(
        self,
        name: str,
        start: Callable[[], list[MPI.Request]],
        staging: Staging,
        outputs: list[Any],
        options: Options | None,
        *,
        averaged: Sequence[Tensor] = (),
        collective: bool = True,
    ) -> MpiWork:
        if averaged:
            staging.averaged(averaged, self._size)
        timeout = options.timeout if options is not None else self.timeout
        self._collectives += collective
        number = self._collectives if collective else None
        work = MpiWork(
            lambda: self._describe(name, number),
            start=start,
            staging=staging,
            outputs=outputs,
            timeout=(timeout if timeout > _NO_TIME else self.timeout).total_seconds(),
            roll_call=self._roll_call,
            number=number,
        )
        if self._runtime.blocking and options is not None and not options.asyncOp:
            # a change of thread costs more than a short message
            self._thread.run(work)
        else:
            self._thread.submit(work)
        return work

    def _describe(self, name: str, number: int | None) -> str:
        which = "" if number is None else f"number {number}, "
        return f"{self}: {name} ({which}group {self._name})"

    def _reduced_dtype(self, kind: Any, tensors: Sequence[Tensor]) -> torch.dtype:
        self._require_dtype("a reduction", tensors[0], tensors)
        require_reducible(kind, tensors[0].dtype)
        return tensors[0].dtype

    def _part_sizes(self, tensor: Tensor, rows: Sequence[int]) -> list[int]:
        """Return how many elements go to or come from each rank."""
        total = tensor.shape[0] if tensor.dim() else 1
        if not rows:
            rows = [total // self._size] * self._size
        if len(rows) != self._size or sum(rows) != total:
            raise InputTypeError(
                f"{self}: all_to_all_single got a tensor of {total} rows to split as {list(rows)}; expected "
                f"{self._size} numbers that add up to it, or rows that {self._size} divides"
            )
        return [count * tensor[0].numel() if count else 0 for count in rows]

    def _require_one_per_rank(self, name: str, what: str, tensors: Sequence[Tensor]) -> None:
        if len(tensors) != self._size:
            raise InputTypeError(
                f"{self}: {name} got {len(tensors)} {what}; expected one for each of {self._size} ranks"
            )

    def _require_equal(self, name: str, model: Tensor, tensors: Sequence[Tensor]) -> None:
        self._require_dtype(name, model, tensors)
        for tensor in tensors:
            if tensor.numel() != model.numel():
                raise InputTypeError(
                    f"{self}: {name} got tensors of shape {tuple(tensor.shape)} and {tuple(model.shape)}; "
                    "they must be of equal size"
                )

    def _require_dtype(self, name: str, model: Tensor, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            if tensor.dtype != model.dtype:
                raise InputTypeError(
                    f"{self}: {name} got tensors of {tensor.dtype} and {model.dtype}; expected one dtype"
                )

    def _require_whole(self, name: str, *, whole: Tensor, part: Tensor) -> None:
        self._require_dtype(name, whole, [part])
        if whole.numel() != self._size * part.numel():
            raise InputTypeError(
                f"{self}: {name} got tensors of shape {tuple(whole.shape)} and {tuple(part.shape)}; "
                f"the larger must be {self._size} times as long, once per rank"
            )

    def __str__(self) -> str:
        return f"rank {self._rank}/{self._size}"


def _is_average(kind: Any) -> bool:
    return bool(kind == dist.ReduceOp.AVG)


def _parts_of(tensor: Tensor, sizes: Sequence[int]) -> list[Any]:
    memory, _, datatype = buffer_of(tensor)
    starts = [0, *accumulate(sizes)][:-1]
    return [memory, (sizes, starts), datatype]
