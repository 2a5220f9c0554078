"""On a GPU: every exchange method, alone and with two processes that share the device over gloo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gsdist
from gsdist.collectives import LocalGroup, run_together
from gsdist.reducers import DenseConfig, GsSgdConfig
from tests.distributed.harness import run_ranks
from tests.reducers_on_device import CONFIGS, run_steps

TOLERANCE: dict[str, float] = {"rtol": 2e-3, "atol": 2e-4}
"""Products and factorisations round differently on the two devices; half precision is on the wire."""


def on_device(tensor: Tensor) -> Tensor:
    return tensor.to("cuda")


def same_on_both(rank: int, world_size: int, name: str) -> None:
    """Compare a method on the GPU with itself on the CPU, between real processes."""
    torch.use_deterministic_algorithms(True)
    assert dist.group.WORLD is not None
    expected = run_steps(CONFIGS[name], dist.group.WORLD, Tensor.clone)
    found = run_steps(CONFIGS[name], dist.group.WORLD, on_device)
    for there, here in zip(found, expected, strict=True):
        torch.testing.assert_close(there, here, **TOLERANCE)


@pytest.mark.filterwarnings("ignore:gs-SGD sends")
@pytest.mark.parametrize("name", CONFIGS)
def test_every_method_computes_the_same_as_on_the_cpu(name: str) -> None:
    def among_threads(place: Callable[[Tensor], Tensor]) -> list[Tensor]:
        groups = LocalGroup.create(3, timeout=60)
        return run_together(groups, lambda group: run_steps(CONFIGS[name], group, place))[0]

    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        expected, found = among_threads(Tensor.clone), among_threads(on_device)
    finally:
        torch.use_deterministic_algorithms(before)
    for there, here in zip(found, expected, strict=True):
        torch.testing.assert_close(there, here, **TOLERANCE)


@pytest.mark.parametrize("name", CONFIGS)
def test_two_processes_share_the_gpu(name: str) -> None:
    run_ranks(same_on_both, 2, name, timeout=120)


def trained(rank: int, world_size: int, config: Any) -> list[Tensor]:
    """Train a small network by DDP for a few steps; return its parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).to("cuda")
    ddp = DistributedDataParallel(model, bucket_cap_mb=0.01)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
    gsdist.attach(ddp, config, optimizer=optimizer)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(6):
        inputs = torch.randn(16, 64, generator=generator).to("cuda")
        labels = torch.randint(10, (16,), generator=generator).to("cuda")
        optimizer.zero_grad()
        nn.functional.cross_entropy(ddp(inputs), labels).backward()
        optimizer.step()
    return [parameter.detach().cpu() for parameter in model.parameters()]


def test_ddp_overlaps_on_a_stream_of_its_own_and_loses_nothing() -> None:
    dense = run_ranks(trained, 2, DenseConfig(), timeout=120)
    everything = GsSgdConfig(compression=1.0, wire_dtype="float32", min_numel=0, max_directions=128)
    exchanged = run_ranks(trained, 2, everything, timeout=120)
    for rank in range(2):
        for found, expected in zip(exchanged[rank], dense[0], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
