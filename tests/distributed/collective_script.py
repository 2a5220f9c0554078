"""Every collective on one group, whatever its backend: inputs are known, so that results can be, too."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Results = dict[str, Any]

GLOO_DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16,
    torch.int8, torch.uint8, torch.int32, torch.int64,
)  # fmt: skip
MORE_DTYPES = (
    torch.bool, torch.int16, torch.uint16, torch.uint32,
    torch.float8_e4m3fn, torch.complex64, torch.complex128,
)  # fmt: skip
SHAPES = ((5,), (2, 3), (), (0,), (3, 0, 2))
REDUCTIONS = {
    "SUM": lambda stacked: stacked.sum(0),
    "AVG": lambda stacked: stacked.sum(0) / len(stacked),
    "PRODUCT": lambda stacked: stacked.prod(0),
    "MIN": lambda stacked: stacked.amin(0),
    "MAX": lambda stacked: stacked.amax(0),
    "BAND": lambda stacked: _fold(torch.bitwise_and, stacked),
    "BOR": lambda stacked: _fold(torch.bitwise_or, stacked),
    "BXOR": lambda stacked: _fold(torch.bitwise_xor, stacked),
}


def _fold(combine: Callable[[Tensor, Tensor], Tensor], stacked: Tensor) -> Tensor:
    result = stacked[0]
    for other in stacked[1:]:
        result = combine(result, other)
    return result


def whole_numbers(
    rank: int, shape: Sequence[int], dtype: torch.dtype, salt: int = 0, factor: int = 1
) -> Tensor:
    """Return whole numbers so small that sums and products of four are exact in any dtype."""
    generator = torch.Generator().manual_seed(1000 * salt + rank)
    return (factor * torch.randint(1, 4, tuple(shape), generator=generator)).to(dtype)


def reductions_of(dtype: torch.dtype) -> tuple[str, ...]:
    """Return the reductions that a dtype has."""
    if dtype.is_complex:
        return ("SUM", "AVG")
    if dtype.is_floating_point:
        return ("SUM", "AVG", "PRODUCT", "MIN", "MAX")
    return tuple(name for name in REDUCTIONS if name != "AVG")


def reduced(name: str, inputs: Sequence[Tensor]) -> Tensor:
    """Compute in this process what a reduction gives."""
    stacked = torch.stack(list(inputs))
    if stacked.dtype == torch.bool:
        return REDUCTIONS[name](stacked.to(torch.uint8)).to(torch.bool)
    if stacked.dtype in (torch.uint16, torch.uint32):
        return REDUCTIONS[name](stacked.to(torch.int64)).to(stacked.dtype)
    return REDUCTIONS[name](stacked).to(stacked.dtype)


class Script:
    """Run everything on one group, and know what must come of it."""

    def __init__(self, group: dist.ProcessGroup, dtypes: Sequence[torch.dtype]) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.dtypes = dtypes

    def run(self) -> tuple[Results, Results]:
        """Return what came out and what should have, by name of the case."""
        found, expected = {}, {}
        for name, one, other in self._cases():
            assert name not in found, name
            found[name], expected[name] = one, other
        return found, expected

    def inputs(
        self, shape: Sequence[int], dtype: torch.dtype, salt: int = 0, factor: int = 1
    ) -> list[Tensor]:
        """Return the inputs of all ranks; this one's is `self.rank`."""
        return [whole_numbers(rank, shape, dtype, salt, factor) for rank in range(self.size)]

    def _cases(self) -> Iterator[tuple[str, Any, Any]]:
        for dtype in self.dtypes:
            yield from self._copies((2, 3), dtype)
            if dtype.itemsize > 1 or not dtype.is_floating_point:
                for kind in reductions_of(dtype):
                    yield from self._reductions(kind, (2, 3), dtype)
        for shape in SHAPES:
            yield from self._reductions("SUM", shape, torch.float32, label=f" of {shape}")
            yield from self._copies(shape, torch.float32, label=f" of {shape}")
        yield from self._strided()
        yield from self._in_place()
        yield from self._uneven()
        yield from self._asynchronous()
        yield from self._messages()

    def _reductions(
        self, kind: str, shape: Sequence[int], dtype: torch.dtype, label: str = ""
    ) -> Iterator[tuple[str, Any, Any]]:
        group, rank, size = self.group, self.rank, self.size
        op = getattr(dist.ReduceOp, kind)
        label = f"{kind} {dtype}{label}"
        factor = 12 if kind == "AVG" else 1  # averages of up to four are whole numbers, too
        inputs = self.inputs(shape, dtype, factor=factor)
        want = reduced(kind, inputs)

        tensor = inputs[rank].clone()
        dist.all_reduce(tensor, op, group=group)
        yield f"all_reduce {label}", tensor, want

        for root in range(size):
            tensor = inputs[rank].clone()
            dist.reduce(tensor, op=op, group=group, group_dst=root)
            if rank == root:
                yield f"reduce to {root} {label}", tensor, want

        parts = [self.inputs(shape, dtype, salt=1 + part, factor=factor) for part in range(size)]
        own = [parts[part][rank].clone() for part in range(size)]
        output = torch.zeros_like(own[0])
        dist.reduce_scatter(output, own, op, group=group)
        want = reduced(kind, parts[rank])
        yield f"reduce_scatter {label}", output, want

        output = torch.zeros_like(own[0].flatten())
        whole = torch.cat([part.flatten() for part in own])
        dist.reduce_scatter_tensor(output, whole, op, group=group)
        yield f"reduce_scatter_tensor {label}", output, want.flatten()

    def _copies(
        self, shape: Sequence[int], dtype: torch.dtype, label: str = ""
    ) -> Iterator[tuple[str, Any, Any]]:
        group, rank, size = self.group, self.rank, self.size
        label = f"{dtype}{label}"
        inputs = self.inputs(shape, dtype)
        empty = [torch.zeros_like(given) for given in inputs]
        for root in range(size):
            tensor = inputs[rank].clone()
            dist.broadcast(tensor, group=group, group_src=root)
            yield f"broadcast from {root} {label}", tensor, inputs[root]

            outputs = [one.clone() for one in empty] if rank == root else None
            dist.gather(inputs[rank], outputs, group=group, group_dst=root)
            if rank == root:
                yield f"gather to {root} {label}", outputs, inputs

            output = empty[0].clone()
            dist.scatter(output, inputs if rank == root else None, group=group, group_src=root)
            yield f"scatter from {root} {label}", output, inputs[rank]

        outputs = [one.clone() for one in empty]
        dist.all_gather(outputs, inputs[rank], group=group)
        yield f"all_gather {label}", outputs, inputs

        if shape:
            output = torch.cat(empty)
            dist.all_gather_into_tensor(output, inputs[rank], group=group)
            yield f"all_gather_into_tensor {label}", output, torch.cat(inputs)

        sent = [self.inputs(shape, dtype, salt=10 + target) for target in range(size)]
        outputs = [one.clone() for one in empty]
        try:
            dist.all_to_all(outputs, [sent[target][rank] for target in range(size)], group=group)
        except RuntimeError as error:
            if "gloo does not support alltoall" not in str(error):  # of torch 2.11
                raise
        else:
            yield f"all_to_all {label}", outputs, sent[rank]

        if shape:
            output = torch.cat(empty)
            dist.all_to_all_single(
                output, torch.cat([sent[target][rank] for target in range(size)]), group=group
            )
            yield f"all_to_all_single {label}", output, torch.cat(sent[rank])

    def _strided(self) -> Iterator[tuple[str, Any, Any]]:
        """Use tensors that are not contiguous, as inputs and as outputs."""
        group, rank = self.group, self.rank
        inputs = [given.t() for given in self.inputs((2, 3), torch.float32, salt=20)]
        empty = [torch.zeros(2, 3).t() for _ in inputs]

        tensor = inputs[rank].clone(memory_format=torch.preserve_format)
        assert not tensor.is_contiguous()
        dist.all_reduce(tensor, group=group)
        yield "all_reduce strided", tensor, reduced("SUM", inputs)

        tensor = inputs[rank].clone(memory_format=torch.preserve_format)
        dist.broadcast(tensor, group=group, group_src=0)
        yield "broadcast strided", tensor, inputs[0]

        outputs = [one.clone(memory_format=torch.preserve_format) for one in empty]
        dist.all_gather(outputs, inputs[rank], group=group)
        yield "all_gather strided", outputs, inputs

        output = torch.zeros(2, 3).t()
        dist.reduce_scatter(output, inputs, group=group)
        yield "reduce_scatter strided", output, inputs[rank] * self.size

    def _in_place(self) -> Iterator[tuple[str, Any, Any]]:
        """Send from where the result goes, as FSDP does."""
        group, rank, size = self.group, self.rank, self.size
        inputs = self.inputs((4,), torch.float32, salt=60)
        whole = torch.zeros(4 * size)
        own = whole[4 * rank : 4 * rank + 4].copy_(inputs[rank])
        dist.all_gather_into_tensor(whole, own, group=group)
        yield "all_gather_into_tensor in place", whole, torch.cat(inputs)

        whole = torch.cat(inputs)
        own = whole[4 * rank : 4 * rank + 4]
        dist.reduce_scatter_tensor(own, whole, group=group)
        yield "reduce_scatter_tensor in place", own, size * inputs[rank]

    def _uneven(self) -> Iterator[tuple[str, Any, Any]]:
        """Exchange parts of as many rows as sender and receiver count together."""
        group, rank, size = self.group, self.rank, self.size

        def part(source: int, target: int) -> Tensor:
            return whole_numbers(source, (source + target, 2), torch.float32, salt=30 + target)

        given = [part(rank, target) for target in range(size)]
        want = [part(source, rank) for source in range(size)]
        output = torch.zeros_like(torch.cat(want))
        dist.all_to_all_single(
            output, torch.cat(given), [len(one) for one in want], [len(one) for one in given],
            group=group,
        )  # fmt: skip
        yield "all_to_all_single uneven", output, torch.cat(want)

    def _asynchronous(self) -> Iterator[tuple[str, Any, Any]]:
        """Issue many operations before waiting for any; chain to a future one that waits itself."""
        group, rank = self.group, self.rank
        inputs = [self.inputs((1 << (2 * i),), torch.float64, salt=40 + i) for i in range(8)]
        tensors = [given[rank].clone() for given in inputs]
        works = [dist.all_reduce(tensor, group=group, async_op=True) for tensor in tensors]
        for i, work in reversed(list(enumerate(works))):
            assert work is not None and work.wait()
            yield f"asynchronous {i}", tensors[i], reduced("SUM", inputs[i])
            assert work.is_completed()

        tensor = inputs[0][rank].clone()
        work = dist.all_reduce(tensor, group=group, async_op=True)
        assert work is not None

        def again(first: "torch.futures.Future[list[Tensor]]") -> Tensor:
            (value,) = first.value()
            second = dist.all_reduce(value, group=group, async_op=True)
            assert second is not None
            return second.get_future().wait()[0] + 1

        chained = work.get_future().then(again).wait()
        yield "chained", chained, reduced("SUM", inputs[0]) * self.size + 1

    def _messages(self) -> Iterator[tuple[str, Any, Any]]:
        """Pass tensors around a ring, in both orders and by tag; then to whoever asks for any."""
        group, rank, size = self.group, self.rank, self.size
        inputs = self.inputs((1000,), torch.float32, salt=50)
        if size > 1:
            after, before = (rank + 1) % size, (rank - 1) % size
            output = torch.zeros(1000)
            asked = dist.irecv(output, group=group, group_src=before)
            sent = dist.isend(inputs[rank], group=group, group_dst=after)
            assert asked is not None and sent is not None
            asked.wait()
            sent.wait()
            yield "ring", output, inputs[before]

            tagged = [torch.zeros(1000), torch.zeros(1000)]
            works = [
                dist.irecv(tagged[tag], group=group, group_src=before, tag=tag) for tag in (1, 0)
            ]
            works += [
                dist.isend(inputs[rank] + tag, group=group, group_dst=after, tag=tag)
                for tag in (0, 1)
            ]
            for work in works:
                assert work is not None
                work.wait()
            yield "tags", tagged, [inputs[before], inputs[before] + 1]

            batch = [
                dist.P2POp(dist.isend, inputs[rank], group=group, group_peer=after),
                dist.P2POp(dist.irecv, output.zero_(), group=group, group_peer=before),
            ]
            for work in dist.batch_isend_irecv(batch):
                work.wait()
            yield "batch", output, inputs[before]
        if rank == 0:
            arrived = {}
            for _ in range(size - 1):
                output = torch.zeros(1000)
                source = dist.recv(output, group=group)
                arrived[dist.get_group_rank(group, source)] = output
            yield "any source", arrived, dict(enumerate(inputs[1:], start=1))
        else:
            dist.send(inputs[rank], group=group, group_dst=0)
        dist.barrier(group=group)
