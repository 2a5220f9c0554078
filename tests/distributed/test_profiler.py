"""Phases of the exchange, seen by torch's profiler."""

import torch
from torch import nn
from torch._C._profiler import _ExperimentalConfig
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

import gsdist
from gsdist.reducers import TopKConfig
from tests.distributed.harness import run_ranks


def ranges(rank: int, world_size: int) -> tuple[set[str], set[str]]:
    model = DistributedDataParallel(nn.Linear(64, 64))
    exchange = gsdist.attach(model, TopKConfig(density=0.1, warmup_steps=0, min_numel=1))
    threads = _ExperimentalConfig(profile_all_threads=True)  # the exchange has one of its own
    with profile(activities=[ProfilerActivity.CPU], experimental_config=threads) as profiler:
        model(torch.randn(4, 64)).sum().backward()
    found = {event.key for event in profiler.key_averages() if event.key.startswith("gsdist::")}
    return found, {f"gsdist::{name}" for name in exchange.stats().seconds}


def test_phases_are_ranges_of_the_profiler() -> None:
    for found, phases in run_ranks(ranges, 2):
        assert found == phases
        assert len(found) >= 2
