"""Carry tensors between the ranks of one communicator: every operation, in MPI's words."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from mpi4py import MPI
from torch import Tensor

from gsdist.collectives.mpi.channel import Channel, Options
from gsdist.collectives.mpi.checks import (
    part_sizes,
    require_equal,
    require_one_dtype,
    require_one_per_rank,
    require_whole,
)
from gsdist.collectives.mpi.datatypes import Reduction, buffer_of, reduction_of
from gsdist.collectives.mpi.staging import Staging
from gsdist.collectives.mpi.work import MpiWork

__all__ = ["Transport"]


class Transport:
    """Put every operation in MPI's words; check and hand it in at once."""

    def __init__(self, channel: Channel) -> None:
        """Use one rank's end of a communicator."""
        self._channel = channel

    # ---- reductions ---------------------------------------------------------------------------------

    def all_reduce(self, tensors: Sequence[Tensor], kind: Any, options: Options) -> MpiWork:
        """Reduce each tensor in place over all ranks."""
        staging = Staging()
        buffers = [staging.updated(tensor) for tensor in tensors]
        reduction = self._reduction(kind, tensors)
        return self._channel.submit(
            "all_reduce",
            lambda: self._channel.calls(
                "Allreduce",
                [(MPI.IN_PLACE, buffer_of(buffer), reduction.operation()) for buffer in buffers],
            ),
            staging,
            list(tensors),
            options,
            averaged=buffers if reduction.average else (),
        )

    def reduce(self, tensor: Tensor, root: int, kind: Any, options: Options) -> MpiWork:
        """Reduce a tensor over all ranks, in place at the root; the others keep theirs."""
        staging = Staging()
        reduction = self._reduction(kind, [tensor])
        at_root = self._channel.rank == root
        buffer = staging.updated(tensor) if at_root else staging.sent(tensor)

        def start() -> list[MPI.Request]:
            own = (MPI.IN_PLACE, buffer_of(buffer)) if at_root else (buffer_of(buffer), None)
            return self._channel.calls("Reduce", [(*own, reduction.operation(), root)])

        averaged = [buffer] if at_root and reduction.average else []
        return self._channel.submit("reduce", start, staging, [tensor], options, averaged=averaged)

    def reduce_scatter(
        self, output: Tensor, inputs: Sequence[Tensor], kind: Any, options: Options
    ) -> MpiWork:
        """Reduce the r-th tensor of all ranks to rank r; tensors may differ in size."""
        require_one_per_rank(self._channel, "reduce_scatter", "inputs", inputs)
        require_equal(self._channel, "reduce_scatter", inputs[self._channel.rank], [output])
        staging = Staging()
        reduction = self._reduction(kind, [output, *inputs])
        joined, received = staging.joined(inputs), staging.received(output)
        counts = [tensor.numel() for tensor in inputs]
        return self._channel.submit(
            "reduce_scatter",
            lambda: self._channel.calls(
                "Reduce_scatter",
                [(buffer_of(joined), buffer_of(received), counts, reduction.operation())],
            ),
            staging,
            [output],
            options,
            averaged=[received] if reduction.average else (),
        )

    def reduce_scatter_single(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], kind: Any, options: Options
    ) -> MpiWork:
        """Reduce each input over all ranks and keep the rank's own part of it, one of equal ones."""
        for output, given in zip(outputs, inputs, strict=True):
            require_whole(self._channel, "reduce_scatter_tensor", whole=given, part=output)
        staging = Staging()
        reduction = self._reduction(kind, [*outputs, *inputs])
        received = [staging.received(output) for output in outputs]
        sent = [
            staging.sent(given, apart_from=target)
            for given, target in zip(inputs, received, strict=True)
        ]
        return self._channel.submit(
            "reduce_scatter_tensor",
            lambda: self._channel.calls(
                "Reduce_scatter_block",
                [
                    (
                        buffer_of(one, parts=self._channel.size),
                        buffer_of(other),
                        reduction.operation(),
                    )
                    for one, other in zip(sent, received, strict=True)
                ],
            ),
            staging,
            list(outputs),
            options,
            averaged=received if reduction.average else (),
        )

    # ---- copies -------------------------------------------------------------------------------------

    def broadcast(self, tensor: Tensor, root: int, options: Options) -> MpiWork:
        """Copy the root's tensor to all ranks."""
        staging = Staging()
        at_root = self._channel.rank == root
        buffer = staging.sent(tensor) if at_root else staging.received(tensor)
        return self._channel.submit(
            "broadcast",
            lambda: self._channel.calls("Bcast", [(buffer_of(buffer), root)]),
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
            require_one_per_rank(self._channel, "all_gather", "outputs", parts)
            require_equal(self._channel, "all_gather", given, parts)
            pairs.append((staging.sent(given), staging.received_jointly(parts)))
        return self._all_gather(pairs, staging, [list(parts) for parts in outputs], options)

    def all_gather_single(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], options: Options
    ) -> MpiWork:
        """Copy each input of rank r to the r-th of as many equal parts of its output as there are ranks."""
        staging = Staging()
        pairs = []
        for given, output in zip(inputs, outputs, strict=True):
            require_whole(self._channel, "all_gather_into_tensor", whole=output, part=given)
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
        return self._channel.submit(
            "all_gather",
            lambda: self._channel.calls(
                "Allgather",
                [
                    (buffer_of(sent), buffer_of(received, parts=self._channel.size))
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
        if self._channel.rank == root:
            require_one_per_rank(self._channel, "gather", "outputs", outputs)
            require_equal(self._channel, "gather", given, outputs)
            received = staging.received_jointly(outputs)

        def start() -> list[MPI.Request]:
            target = None if received is None else buffer_of(received, parts=self._channel.size)
            return self._channel.calls("Gather", [(buffer_of(sent), target, root)])

        return self._channel.submit("gather", start, staging, list(outputs), options)

    def scatter(
        self, output: Tensor, inputs: Sequence[Tensor], root: int, options: Options
    ) -> MpiWork:
        """Copy the r-th input of the root to rank r; the others give no inputs."""
        staging = Staging()
        received = staging.received(output)
        sent = None
        if self._channel.rank == root:
            require_one_per_rank(self._channel, "scatter", "inputs", inputs)
            require_equal(self._channel, "scatter", output, inputs)
            sent = staging.joined(inputs)

        def start() -> list[MPI.Request]:
            source = None if sent is None else buffer_of(sent, parts=self._channel.size)
            return self._channel.calls("Scatter", [(source, buffer_of(received), root)])

        return self._channel.submit("scatter", start, staging, [output], options)

    def all_to_all(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], options: Options
    ) -> MpiWork:
        """Copy the s-th input of rank r to the r-th output of rank s; tensors may differ in size."""
        require_one_per_rank(self._channel, "all_to_all", "inputs", inputs)
        require_one_per_rank(self._channel, "all_to_all", "outputs", outputs)
        require_one_dtype(self._channel, "all_to_all", [*inputs, *outputs])
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
        require_one_dtype(self._channel, "all_to_all_single", [given, output])
        staging = Staging()
        received = staging.received(output)
        return self._all_to_all(
            (
                staging.sent(given, apart_from=received),
                part_sizes(self._channel, given, input_rows),
            ),
            (received, part_sizes(self._channel, output, output_rows)),
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
        return self._channel.submit(
            "all_to_all",
            lambda: self._channel.calls("Alltoallv", [(_parts_of(*sent), _parts_of(*received))]),
            staging,
            outputs,
            options,
        )

    # ---- single ranks, and none ---------------------------------------------------------------------

    def send(self, tensor: Tensor, target: int, tag: int) -> MpiWork:
        """Send a tensor to one rank."""
        staging = Staging()
        buffer = staging.sent(tensor)
        return self._channel.submit(
            f"send to rank {target}",
            lambda: [self._channel.communicator.Isend(buffer_of(buffer), target, tag)],
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
        return self._channel.submit(
            f"receive from {'any rank' if source is None else f'rank {source}'}",
            lambda: [self._channel.communicator.Irecv(buffer_of(buffer), rank, tag)],
            staging,
            [tensor],
            None,
            collective=False,
        )

    def barrier(self, options: Options) -> MpiWork:
        """Wait for all ranks."""
        return self._channel.submit(
            "barrier", lambda: self._channel.calls("Barrier", [()]), Staging(), [], options
        )

    def _reduction(self, kind: Any, tensors: Sequence[Tensor]) -> Reduction:
        return reduction_of(kind, require_one_dtype(self._channel, "a reduction", tensors))


def _parts_of(tensor: Tensor, sizes: Sequence[int]) -> list[Any]:
    memory, _, datatype = buffer_of(tensor)
    starts = [0, *accumulate(sizes)][:-1]
    return [memory, (sizes, starts), datatype]
