"""How the bytes of an exchange are divided among parameters."""

from collections import OrderedDict
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gsdist.integrations.ddp import attach
from gsdist.reducers import REDUCER_CONFIGS, ExchangeStatistics, PowerSgdConfig
from gsdist.training.launch import detect_launch, process_group

SMALL = {"min_numel": 100, "warmup_steps": 2}


@pytest.fixture(autouse=True)
def _group() -> Iterator[None]:
    with process_group(detect_launch({}), timedelta(seconds=30)):
        yield


def exchange(config: Any, steps: int) -> ExchangeStatistics:
    torch.manual_seed(0)
    layers = OrderedDict(first=nn.Linear(40, 30), second=nn.Linear(30, 20))
    model = DistributedDataParallel(nn.Sequential(layers))
    state = attach(model, config)
    for _ in range(steps):
        model(torch.randn(16, 40)).square().mean().backward()
    return state.stats()


@pytest.mark.parametrize("name", REDUCER_CONFIGS)
def test_no_byte_is_lost_or_counted_twice(name: str) -> None:
    kind = REDUCER_CONFIGS[name]
    found = exchange(kind() if name == "dense" else kind(**SMALL), steps=6)
    names = {"first.weight", "first.bias", "second.weight", "second.bias"}
    assert set(found.payload_bytes_of) == names
    assert sum(found.payload_bytes_of.values()) == pytest.approx(found.payload_bytes)


def test_factors_of_rank_2_count_as_2_rows_and_2_columns() -> None:
    found = exchange(PowerSgdConfig(rank=2, min_numel=100, warmup_steps=0), steps=3)
    each = found.payload_bytes / (2 * (30 + 40) + 30 + 2 * (20 + 30) + 20)
    assert found.payload_bytes_of["first.weight"] == pytest.approx(each * 2 * (30 + 40))
    assert found.payload_bytes_of["second.bias"] == pytest.approx(each * 20)
