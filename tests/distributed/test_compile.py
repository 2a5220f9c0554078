"""A model compiled by torch.compile, gsdist's hook outside: the same training as without."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gsdist
from gsdist.reducers import TopKConfig
from tests.distributed.harness import run_ranks


def trained(rank: int, compiled: bool) -> tuple[list[Tensor], int]:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Linear(16, 512), nn.Tanh(), nn.Linear(512, 512), nn.Tanh()),
        *(nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 2)),
    )
    # several buckets, at whose borders DDP cuts the compiled graph; below 1 MB torch.compile refuses
    ddp = DistributedDataParallel(net, bucket_cap_mb=1)
    config = TopKConfig(density=0.05, warmup_steps=2, min_numel=100)
    exchange = gsdist.attach(ddp, config)
    model: Any = torch.compile(ddp, backend="aot_eager") if compiled else ddp
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(8):
        optimizer.zero_grad()
        inputs, targets = (
            torch.randn(8, 16, generator=generator),
            torch.randn(8, 2, generator=generator),
        )
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in net.parameters()], exchange.stats().steps


def both(rank: int, world_size: int) -> list[tuple[list[Tensor], int]]:
    return [trained(rank, compiled) for compiled in (False, True)]


def test_a_compiled_model_trains_as_an_eager_one() -> None:
    for (eager, steps), (compiled, steps_compiled) in run_ranks(both, 2, timeout=110):
        assert steps == steps_compiled == 8
        for expected, found in zip(eager, compiled, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
