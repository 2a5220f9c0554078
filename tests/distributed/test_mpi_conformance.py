"""The backend mpi4py against gloo and against what the inputs say, on sub-groups of 1 to 4 ranks.

Everything runs in one job of mpirun, with the MPI and the torch of the environment that runs pytest.
"""

from collections.abc import Sequence
from dataclasses import fields
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import _functional_collectives as functional
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from gsdist import attach
from gsdist.errors import CollectiveError, InputTypeError
from gsdist.reducers import REDUCER_CONFIGS, ReducerConfig
from tests.distributed.collective_script import GLOO_DTYPES, MORE_DTYPES, Results, Script
from tests.distributed.mpi_job import require_mpi, run_mpi_ranks

require_mpi()

WORLD_SIZE = 4


def collectives(rank: int, sizes: Sequence[int]) -> list[Any]:
    """Return, for groups of the first ranks: what mpi4py gave, what is right, and what gloo gave."""
    results = []
    for size in sizes:
        ranks = list(range(size))
        mpi, gloo = dist.new_group(ranks), dist.new_group(ranks, backend="gloo")
        if rank < size:
            found, expected = Script(mpi, GLOO_DTYPES + MORE_DTYPES).run()
            other, _ = Script(gloo, GLOO_DTYPES).run()
            results.append((found, expected, other))
    return results


def assert_same(found: Results, expected: Results) -> None:
    assert len(found) > 100
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


def floats(rank: int, world_size: int) -> list[tuple[Tensor, Tensor]]:
    """Return sums of random numbers, and the same in double precision."""
    pairs = []
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        generator = torch.Generator().manual_seed(3)
        everyone = torch.randn(world_size, 10_001, generator=generator).to(dtype)
        total = everyone[rank].clone()
        dist.all_reduce(total)
        pairs.append((total, everyone.double()))
    return pairs


def layers() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def sharded_and_replicated(rank: int, world_size: int) -> tuple[list[Tensor], list[Tensor]]:
    """Train under FSDP2 and under DDP on own data; return both sets of parameters."""
    data = torch.randn(4 * world_size, 6, generator=torch.Generator().manual_seed(7))
    sampler: DistributedSampler[int] = DistributedSampler(range(len(data)), shuffle=False)
    own = data[list(sampler)]
    sharded, replicated = layers(), DistributedDataParallel(layers())
    for layer in sharded:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=init_device_mesh("cpu", (world_size,)))
    fully_shard(sharded, mesh=init_device_mesh("cpu", (world_size,)))
    for model in (sharded, replicated):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            model(own).square().mean().backward()
            optimizer.step()
    whole = [parameter.full_tensor() for parameter in sharded.parameters()]
    return whole, list(replicated.module.parameters())


def one_process() -> list[Tensor]:
    data = torch.randn(4 * WORLD_SIZE, 6, generator=torch.Generator().manual_seed(7))
    model = layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model(data).square().mean().backward()
        optimizer.step()
    return list(model.parameters())


def mesh_and_functional(rank: int, world_size: int) -> dict[str, Tensor]:
    """Run functional collectives on the dimensions of a 2 x 2 mesh."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("row", "column"))
    row, column = mesh["row"].get_group(), mesh["column"].get_group()
    own = torch.tensor([rank, 10.0 * rank])
    several = functional.all_reduce_coalesced([own, own + 1], "sum", column)
    return {
        "sum over column": functional.all_reduce(own, "sum", column).clone(),
        "largest over row": functional.all_reduce(own, "max", row).clone(),
        "gathered over row": functional.all_gather_tensor(own, 0, row).clone(),
        "scattered over column": functional.reduce_scatter_tensor(own, "sum", 0, column).clone(),
        "exchanged over row": functional.all_to_all_single(own, None, None, row).clone(),
        "second of several": several[1].clone(),
    }


def crossed(rank: int) -> list[float]:
    """Issue on two groups in one order on rank 0 and in the other elsewhere; return both sums."""
    first, second = dist.new_group(), dist.new_group()
    tensors = {first: torch.tensor(1.0), second: torch.tensor(2.0)}
    works = [
        dist.all_reduce(tensors[group], group=group, async_op=True)
        for group in ((first, second) if rank == 0 else (second, first))
    ]
    for work in works:
        assert work is not None
        work.wait()
    return [tensor.item() for tensor in tensors.values()]


def impatient(rank: int) -> str:
    """Wait for too short a time, then for long enough; return what the first time gave."""
    complaint = ""
    aside = dist.new_group()  # the other group is occupied
    if rank:
        dist.recv(torch.zeros(1), 0, group=aside)
    work = dist.all_reduce(torch.ones(1), async_op=True)
    assert work is not None
    if rank == 0:
        assert not work.is_completed()
        try:
            work.wait(timedelta(seconds=0.2))
        except CollectiveError as error:
            complaint = str(error)
        for other in range(1, dist.get_world_size()):
            dist.send(torch.zeros(1), other, group=aside)
    work.wait()
    return complaint


def trained(config: ReducerConfig, group: dist.ProcessGroup, rank: int) -> Tensor:
    """Return the parameters after three steps of an exchange method."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 10))
    model = DistributedDataParallel(net, process_group=group)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, config, optimizer=optimizer)
    data = torch.randn(3, 8, 64, generator=torch.Generator().manual_seed(rank))
    for batch in data:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def reducers(rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Train with every exchange method on mpi4py and on gloo."""
    gloo = dist.new_group(backend="gloo")
    assert dist.group.WORLD is not None and gloo is not None
    results = {}
    for name, kind in REDUCER_CONFIGS.items():
        settings = {"min_numel": 64, "wire_dtype": "float32"}
        there = {field.name for field in fields(kind)}
        config = kind(**{key: value for key, value in settings.items() if key in there})
        results[name] = (trained(config, dist.group.WORLD, rank), trained(config, gloo, rank))
    return results


def refused(rank: int) -> list[str]:
    """Ask for what cannot be done; nothing of it may reach the other ranks."""
    wrong = (
        lambda: dist.all_reduce(torch.ones(2), dist.ReduceOp.BAND),
        lambda: dist.all_reduce(torch.ones(2, dtype=torch.int32), dist.ReduceOp.AVG),
        lambda: dist.all_reduce(torch.eye(2).to_sparse()),
        lambda: dist.all_gather([torch.ones(2)] * 3, torch.ones(2)),
        lambda: dist.all_gather([torch.ones(3)] * 4, torch.ones(2)),
        lambda: dist.all_gather_into_tensor(torch.ones(9), torch.ones(2)),
        lambda: dist.all_to_all_single(torch.ones(4), torch.ones(4), [2, 2, 2, 2], [1, 1, 1, 1]),
    )
    complaints = []
    for call in wrong:
        try:
            call()
        except InputTypeError as error:
            complaints.append(str(error))
    return complaints


def everything(rank: int, world_size: int) -> Any:
    return (
        collectives(rank, range(1, world_size + 1)),
        floats(rank, world_size),
        sharded_and_replicated(rank, world_size),
        mesh_and_functional(rank, world_size),
        (crossed(rank), impatient(rank), refused(rank), reducers(rank)),
    )


@pytest.fixture(scope="module")
def results() -> list[Any]:
    return run_mpi_ranks(everything, WORLD_SIZE)


@pytest.mark.parametrize("size", range(1, WORLD_SIZE + 1))
def test_whole_numbers_are_bit_equal_to_what_the_inputs_say_and_to_gloo(
    results: list[Any], size: int
) -> None:
    for rank in range(size):
        found, expected, gloo = results[rank][0][size - 1 - rank]
        assert_same(found, expected)
        assert_same(found, gloo)


def test_random_sums_are_within_rounding(results: list[Any]) -> None:
    first = results[0][1]
    for _, pairs, *_ in results:
        for (total, everyone), (on_first, _) in zip(pairs, first, strict=True):
            bound = WORLD_SIZE * torch.finfo(total.dtype).eps * everyone.abs().sum(0)
            assert ((total.double() - everyone.sum(0)).abs() <= bound).all()
            assert total.equal(on_first), "ranks hold different bits"


def test_fsdp2_and_ddp_train_as_one_process_does(results: list[Any]) -> None:
    for _, _, (sharded, replicated), *_ in results:
        torch.testing.assert_close(sharded, one_process(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(replicated, one_process(), rtol=1e-5, atol=1e-6)


def test_functional_collectives_on_a_mesh(results: list[Any]) -> None:
    for rank, (_, _, _, found, _) in enumerate(results):
        beside = rank ^ 1  # the other rank of its column group: 0 1 and 2 3
        below = rank ^ 2
        lower, higher = sorted((rank, below))
        first = rank == lower
        assert {name: value.tolist() for name, value in found.items()} == {
            "sum over column": [rank + beside, 10.0 * (rank + beside)],
            "largest over row": [higher, 10.0 * higher],
            "gathered over row": [lower, 10.0 * lower, higher, 10.0 * higher],
            "scattered over column": [(1.0 if rank < beside else 10.0) * (rank + beside)],
            "exchanged over row": [lower, higher] if first else [10.0 * lower, 10.0 * higher],
            "second of several": [rank + beside + 2, 10.0 * (rank + beside) + 2],
        }


def test_groups_do_not_wait_for_one_another(results: list[Any]) -> None:
    assert [rest[0] for *_, rest in results] == [[WORLD_SIZE, 2.0 * WORLD_SIZE]] * WORLD_SIZE


def test_waiting_can_be_given_up_before_the_deadline(results: list[Any]) -> None:
    first, *others = (rest[1] for *_, rest in results)
    assert "all_reduce" in first and "is still running after 0:00:00.2" in first
    assert others == [""] * (WORLD_SIZE - 1)


def test_what_cannot_be_done_is_refused_before_anything_is_sent(results: list[Any]) -> None:
    for *_, (_, _, complaints, _) in results:
        assert len(complaints) == 7
        for complaint, words in zip(
            complaints,
            ("BAND", "AVG", "sparse", "3 outputs", r"(3,) and (2,)", "4 times", "4 rows"),
            strict=True,
        ):
            assert words in complaint


def test_every_reducer_trains_as_on_gloo(results: list[Any]) -> None:
    first = results[0][-1][3]
    for *_, (_, _, _, trained) in results:
        for name, (by_mpi, by_gloo) in trained.items():
            assert by_mpi.equal(first[name][0]), f"{name}: ranks hold different bits"
            torch.testing.assert_close(
                by_mpi, by_gloo, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )
