"""Hybrid sharding: FSDP2 inside a node, an exchange between nodes, equal to DDP where everything is sent."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import gsdist
from gsdist.errors import ConfigError, UnsupportedSetup
from gsdist.reducers import DenseConfig, GsSgdConfig, ReducerConfig, TopKConfig
from tests.distributed.harness import run_ranks

STEPS = 5
EVERYTHING: dict[str, ReducerConfig] = {
    "dense": DenseConfig(),
    "top-k": TopKConfig(density=1.0, masking=False, min_numel=0, momentum="local"),
    "gs-sgd": GsSgdConfig(compression=1.0, wire_dtype="float32", min_numel=0),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    # an odd layer, so that shards differ in size and one worker has none of the last bias
    return nn.Sequential(
        nn.Linear(12, 33), nn.ReLU(), nn.Linear(33, 20), nn.ReLU(), nn.Linear(20, 1)
    )


def draw(step: int, rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(8, 12, generator=generator), torch.randn(8, 1, generator=generator)


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


def by_ddp(rank: int, world_size: int) -> list[Tensor]:
    model = network()
    ddp, optimizer = DistributedDataParallel(model), make_optimizer(model)
    for step in range(STEPS):
        inputs, targets = draw(step, rank)
        optimizer.zero_grad()
        nn.functional.mse_loss(ddp(inputs), targets).backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def sharded() -> tuple[nn.Sequential, Any]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    model = network()
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh["shard"])
    fully_shard(model, mesh=mesh["shard"])
    return model, mesh


def by_hybrid_shard(rank: int, world_size: int, config: ReducerConfig, explicit: bool) -> Any:
    model, mesh = sharded()
    optimizer = make_optimizer(model)
    exchange = gsdist.attach_hybrid_shard(model, config, mesh["replicate"], optimizer=optimizer)
    for step in range(STEPS):
        inputs, targets = draw(step, rank)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        if explicit:
            exchange.average_gradients()
        optimizer.step()
    exchange.load_state_dict(exchange.state_dict())
    whole = [parameter.full_tensor().detach() for parameter in model.parameters()]
    return whole, exchange.stats().steps


@pytest.fixture(scope="module")
def expected() -> list[Tensor]:
    return run_ranks(by_ddp, 4)[0]


@pytest.mark.parametrize("name", EVERYTHING)
def test_equals_ddp_where_everything_is_sent(name: str, expected: list[Tensor]) -> None:
    for parameters, steps in run_ranks(by_hybrid_shard, 4, EVERYTHING[name], name == "dense"):
        assert steps == STEPS
        for found, wanted in zip(parameters, expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def refusals_and_residual(rank: int, world_size: int) -> tuple[list[str], int]:
    """Return what is said of three wrong set-ups, and the size of what a right one keeps."""

    def refused(model: nn.Module, mesh: Any) -> str:
        try:
            gsdist.attach_hybrid_shard(model, DenseConfig(), mesh, optimizer=make_optimizer(model))
        except (UnsupportedSetup, ConfigError) as error:
            return str(error)
        return "accepted"

    model, mesh = sharded()
    whole_mesh = network()
    fully_shard(whole_mesh, mesh=mesh)
    texts = [
        refused(network(), mesh["replicate"]),
        refused(whole_mesh, mesh["replicate"]),
        refused(model, mesh["shard"]),
    ]
    config = TopKConfig(density=0.5, min_numel=0)
    exchange = gsdist.attach_hybrid_shard(
        model, config, mesh["replicate"], optimizer=make_optimizer(model)
    )
    return texts, sum(part.numel() for part in exchange.state_dict()["residual"].values())


def test_other_set_ups_are_refused_and_state_is_as_large_as_a_shard() -> None:
    results = run_ranks(refusals_and_residual, 4)
    for (unsharded, whole_mesh, wrong_mesh), _ in results:
        assert "'0.weight' is not sharded; apply fully_shard to the whole model" in unsharded
        assert 'fully_shard(model, mesh=mesh["shard"])' in whole_mesh
        assert 'fully_shard(model, mesh=mesh["shard"])' in wrong_mesh
    weights = sum(p.numel() for p in network().parameters() if p.ndim > 1)
    assert [kept for _, kept in results[:2]] == [
        12 * 17 + 33 * 10 + 20,
        weights - 12 * 17 - 33 * 10 - 20,
    ]
