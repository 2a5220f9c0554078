"""Give torch what it calls a process group: the names and options of c10d on top of the transport.

A subclass of `ProcessGroup`, not of `Backend`: torch 2.11 has no constructor of the latter for Python, and
where there is one, work objects reach users through C++, which does not ask them whether they are complete
or whom a message came from.
"""

# torch declares overloads for single tensors and other argument names; nothing calls those through Python.
# mypy: disable-error-code="override, assignment"

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C import _distributed_c10d as c10d

from gsdist.collectives.mpi.channel import Channel
from gsdist.collectives.mpi.transport import Transport

__all__ = ["MpiProcessGroup"]

_NAME = "mpi4py"


class MpiProcessGroup(dist.ProcessGroup):
    """Translate c10d's operations into the transport's, each under all names it has had."""

    supports_coalescing = False  # of sends and receives; torch then issues them one by one
    supports_splitting = False

    def __init__(self, options: c10d._DistributedBackendOptions) -> None:
        """Make what torch asks for in `init_process_group` and `new_group`; on all ranks of the group.

        Raises:
            GsdistError: as `Channel`.
        """
        rank, size = options.group_rank, options.group_size
        super().__init__(rank, size)  # type: ignore[call-arg]
        self._group_name: str = options.group_id
        self._channel = Channel(
            options.global_ranks_in_group,
            name=options.group_id,
            rank=rank,
            size=size,
            timeout=options.timeout,
            store=options.store,
        )
        self._transport = Transport(self._channel)

    @property
    def group_name(self) -> str:
        """Return the name under which torch has registered the group."""
        return self._group_name

    @property
    def timeout(self) -> timedelta:
        """Return the deadline of operations that are given none."""
        return self._channel.timeout

    def _get_backend(self, device: torch.device) -> Self:
        # torch looks here for `supports_coalescing`
        return self

    def allreduce(self, tensors: Sequence[Tensor], opts: Any = None) -> dist.Work:
        """Reduce in place."""
        opts = opts or c10d.AllreduceOptions()
        return self._transport.all_reduce(tensors, opts.reduceOp.op, opts)

    allreduce_coalesced = allreduce

    def reduce(self, tensors: Sequence[Tensor], opts: Any) -> dist.Work:
        """Reduce to the root."""
        (tensor,) = tensors
        return self._transport.reduce(tensor, opts.rootRank, opts.reduceOp.op, opts)

    def reduce_scatter(
        self, outputs: Sequence[Tensor], inputs: Sequence[Sequence[Tensor]], opts: Any = None
    ) -> dist.Work:
        """Reduce a list of one tensor per rank."""
        opts = opts or c10d.ReduceScatterOptions()
        (output,), (parts,) = outputs, inputs
        return self._transport.reduce_scatter(output, parts, opts.reduceOp.op, opts)

    def reduce_scatter_single(self, output: Tensor, given: Tensor, opts: Any = None) -> dist.Work:
        """Reduce one tensor and keep a part."""
        return self.reduce_scatter_single_coalesced([output], [given], opts)

    _reduce_scatter_base = reduce_scatter_single

    def reduce_scatter_single_coalesced(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], opts: Any = None
    ) -> dist.Work:
        """Reduce several tensors and keep a part of each."""
        opts = opts or c10d.ReduceScatterOptions()
        return self._transport.reduce_scatter_single(outputs, inputs, opts.reduceOp.op, opts)

    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def broadcast(self, tensors: Sequence[Tensor], opts: Any) -> dist.Work:
        """Copy the root's tensor."""
        (tensor,) = tensors
        return self._transport.broadcast(tensor, opts.rootRank, opts)

    def allgather(
        self, outputs: Sequence[Sequence[Tensor]], inputs: Sequence[Tensor], opts: Any = None
    ) -> dist.Work:
        """Gather into lists."""
        opts = opts or c10d.AllgatherOptions()
        return self._transport.all_gather(outputs, inputs, opts)

    def allgather_coalesced(
        self, outputs: Sequence[Sequence[Tensor]], inputs: Sequence[Tensor], opts: Any = None
    ) -> dist.Work:
        """Gather several tensors; here c10d's lists are one per rank, not one per tensor."""
        by_tensor = [list(parts) for parts in zip(*outputs, strict=True)]
        return self.allgather(by_tensor, inputs, opts)

    def all_gather_single(self, output: Tensor, given: Tensor, opts: Any = None) -> dist.Work:
        """Gather into one tensor."""
        return self.all_gather_single_coalesced([output], [given], opts)

    _allgather_base = all_gather_single

    def all_gather_single_coalesced(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], opts: Any = None
    ) -> dist.Work:
        """Gather several tensors, each into one."""
        opts = opts or c10d.AllgatherOptions()
        return self._transport.all_gather_single(outputs, inputs, opts)

    allgather_into_tensor_coalesced = all_gather_single_coalesced

    def gather(
        self, outputs: Sequence[Sequence[Tensor]], inputs: Sequence[Tensor], opts: Any
    ) -> dist.Work:
        """Gather at the root."""
        (given,) = inputs
        parts = outputs[0] if outputs else []
        return self._transport.gather(parts, given, opts.rootRank, opts)

    def scatter(
        self, outputs: Sequence[Tensor], inputs: Sequence[Sequence[Tensor]], opts: Any
    ) -> dist.Work:
        """Scatter from the root."""
        (output,) = outputs
        parts = inputs[0] if inputs else []
        return self._transport.scatter(output, parts, opts.rootRank, opts)

    def alltoall(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], opts: Any = None
    ) -> dist.Work:
        """Exchange lists of one tensor per rank."""
        opts = opts or c10d.AllToAllOptions()
        return self._transport.all_to_all(outputs, inputs, opts)

    def all_to_all_single(
        self,
        output: Tensor,
        given: Tensor,
        output_rows: Sequence[int],
        input_rows: Sequence[int],
        opts: Any = None,
    ) -> dist.Work:
        """Exchange parts of one tensor."""
        opts = opts or c10d.AllToAllOptions()
        return self._transport.all_to_all_single(output, given, output_rows, input_rows, opts)

    alltoall_base = all_to_all_single

    def send(self, tensors: Sequence[Tensor], target: int, tag: int = 0) -> dist.Work:
        """Send to one rank."""
        (tensor,) = tensors
        return self._transport.send(tensor, target, tag)

    def recv(self, tensors: Sequence[Tensor], source: int, tag: int = 0) -> dist.Work:
        """Receive from one rank."""
        (tensor,) = tensors
        return self._transport.receive(tensor, source, tag)

    def recv_anysource(self, tensors: Sequence[Tensor], tag: int = 0) -> dist.Work:
        """Receive from any rank."""
        (tensor,) = tensors
        return self._transport.receive(tensor, None, tag)

    def barrier(self, opts: Any = None) -> dist.Work:
        """Wait for all ranks."""
        opts = opts or c10d.BarrierOptions()
        return self._transport.barrier(opts)

    def set_timeout(self, timeout: timedelta) -> None:
        """Set the deadline of later operations."""
        self._channel.timeout = timeout

    def shutdown(self) -> None:
        """Complete what was issued and give the communicator back."""
        self._channel.close()

    def abort(self) -> None:
        """Let the launcher end the job when this process exits."""
        self._channel.abandon()

    def name(self) -> str:
        """Return the backend's name."""
        return _NAME

    getBackendName = _get_backend_name = name
