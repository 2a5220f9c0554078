"""On a GPU: every exchange method, alone and with two processes that share the device over gloo."""

from __future__ import annotations

import traceback
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


def difference(name: str, group: dist.ProcessGroup) -> str:
    """Run a method on the CPU and on the GPU; return in what they differ, or nothing."""
    expected = run_steps(CONFIGS[name], group, Tensor.clone)
    found = run_steps(CONFIGS[name], group, on_device)
    try:
        for there, here in zip(found, expected, strict=True):
            torch.testing.assert_close(there, here, **TOLERANCE)
    except AssertionError as error:
        return str(error)
    return ""


@pytest.mark.filterwarnings("ignore:gs-SGD sends")
@pytest.mark.parametrize("name", CONFIGS)
def test_every_method_computes_the_same_as_on_the_cpu(name: str) -> None:
    torch.use_deterministic_algorithms(True)
    groups = LocalGroup.create(3, timeout=60)
    assert run_together(groups, lambda group: difference(name, group)) == ["", "", ""]


def all_differences(rank: int, world_size: int) -> dict[str, str]:
    """Compare every method between real processes, each in a group that an error may spoil."""
    torch.use_deterministic_algorithms(True)
    found = {}
    for name in CONFIGS:
        group = dist.new_group()
        try:
            found[name] = difference(name, group)
        except Exception:
            found[name] = traceback.format_exc()
    return found


@pytest.fixture(scope="module")
def among_processes() -> list[dict[str, str]]:
    """Two processes share the device; they start once, as a process takes seconds to open a GPU."""
    return run_ranks(all_differences, 2, timeout=110)


@pytest.mark.parametrize("name", CONFIGS)
def test_two_processes_share_the_gpu(among_processes: list[dict[str, str]], name: str) -> None:
    assert [rank[name] for rank in among_processes] == ["", ""]


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
    dense = run_ranks(trained, 2, DenseConfig(), timeout=55)
    everything = GsSgdConfig(compression=1.0, wire_dtype="float32", min_numel=0, max_directions=128)
    exchanged = run_ranks(trained, 2, everything, timeout=55)
    for rank in range(2):
        for found, expected in zip(exchanged[rank], dense[0], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
