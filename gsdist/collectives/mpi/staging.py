"""Bring tensors into the form MPI can use, contiguous and on the host, and results back."""

import logging
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from gsdist.errors import InputTypeError

__all__ = ["Staging"]


class Staging:
    """Stand between the tensors of one operation and MPI.

    Contiguous CPU tensors are used as they are. Others are copied: what is sent when the operation is handed
    in, results when it is complete. CUDA tensors go through pinned memory.
    """

    def __init__(self) -> None:
        self._results: list[tuple[Tensor, Tensor]] = []
        self._copies_done: list[torch.cuda.Event] = []
        self._sums: Sequence[Tensor] = ()
        self._summands = 1

    def sent(self, tensor: Tensor, *, apart_from: Tensor | None = None) -> Tensor:
        """Return a contiguous host tensor with the values to send, outside the memory of another one."""
        if _usable(tensor) and (apart_from is None or not _overlap(tensor, apart_from)):
            return tensor
        return self._fill(_on_host(tensor), _dense(tensor))

    def joined(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the values of several tensors one after the other."""
        joined = _on_host(tensors[0], sum(tensor.numel() for tensor in tensors))
        for part, tensor in zip(_split(joined, tensors), tensors, strict=True):
            self._fill(part, _dense(tensor))
        return joined

    def received(self, tensor: Tensor) -> Tensor:
        """Return a contiguous host tensor whose values reach `tensor` in the end."""
        if _usable(tensor):
            return tensor
        host = _on_host(tensor)
        self._results.append((_dense(tensor), host))
        return host

    def received_jointly(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return a host tensor whose values reach several tensors, one after the other."""
        joined = _on_host(tensors[0], sum(tensor.numel() for tensor in tensors))
        dense = [_dense(tensor) for tensor in tensors]
        self._results += zip(dense, _split(joined, dense), strict=True)
        return joined

    def updated(self, tensor: Tensor) -> Tensor:
        """Return a contiguous host tensor with the values of `tensor`, whose values reach it in the end."""
        return tensor if _usable(tensor) else self._fill(self.received(tensor), _dense(tensor))

    def averaged(self, sums: Sequence[Tensor], summands: int) -> None:
        """Take note that host tensors will hold sums, of which the averages are wanted."""
        self._sums, self._summands = sums, summands

    def wait_for_device(self) -> None:
        """Wait until all that is sent has arrived in host memory."""
        for event in self._copies_done:
            event.synchronize()

    def deliver(self) -> None:
        """Make averages of sums, and copy results to where they belong."""
        for buffer in self._sums:
            buffer.detach().div_(self._summands)
        for tensor, host in self._results:
            if tensor.is_cuda:
                # not the current stream of this thread, which other kernels may keep busy
                stream = torch.cuda.Stream(tensor.device)  # type: ignore[no-untyped-call]
                with torch.cuda.stream(stream):
                    tensor.copy_(host, non_blocking=True)
                stream.synchronize()
            else:
                tensor.copy_(host)

    def _fill(self, host: Tensor, tensor: Tensor) -> Tensor:
        host.copy_(tensor, non_blocking=tensor.is_cuda)
        if tensor.is_cuda:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(tensor.device))
            self._copies_done.append(event)
        return host


def _dense(tensor: Tensor) -> Tensor:
    if tensor.layout != torch.strided:
        raise InputTypeError(
            f"a tensor of layout {tensor.layout} cannot travel over MPI; call to_dense() first"
        )
    return tensor.detach()


def _usable(tensor: Tensor) -> bool:
    # a conjugated or negated view holds other values than its memory
    return (
        tensor.layout == torch.strided
        and tensor.is_cpu
        and tensor.is_contiguous()
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


def _overlap(one: Tensor, other: Tensor) -> bool:
    # MPI forbids to send from where it receives, which torch allows
    end, other_end = (tensor.data_ptr() + tensor.nbytes for tensor in (one, other))
    return one.data_ptr() < other_end and other.data_ptr() < end


@cache
def _say_how_cuda_tensors_travel() -> None:
    logging.getLogger("gsdist").warning(
        "CUDA tensors go over MPI by way of pinned host memory; NCCL is faster for gradients"
    )


def _on_host(tensor: Tensor, numel: int | None = None) -> Tensor:
    if tensor.is_cuda:
        _say_how_cuda_tensors_travel()
    shape = tuple(tensor.shape) if numel is None else (numel,)
    return torch.empty(shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)


def _split(joined: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    parts = torch.split(joined, [tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
