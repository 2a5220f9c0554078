"""On a GPU: FSDP2's shards are exchanged after its own streams are done; one worker, over NCCL."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import gsdist
from gsdist.reducers import DenseConfig, GsSgdConfig, ReducerConfig, TopKConfig
from gsdist.training import detect_launch, process_group

STEPS = 5
EVERYTHING: dict[str, ReducerConfig] = {
    "dense": DenseConfig(),
    "top-k": TopKConfig(density=1.0, masking=False, min_numel=0, momentum="local"),
    "gs-sgd": GsSgdConfig(compression=1.0, wire_dtype="float32", min_numel=0),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 33), nn.ReLU(), nn.Linear(33, 20), nn.ReLU())


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        inputs = torch.randn(8, 12, generator=generator).to(device)
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", EVERYTHING)
def test_equals_training_on_the_cpu_where_everything_is_sent(name: str) -> None:
    expected = network()
    train(expected, optimizer_of(expected), "cpu")
    with process_group(detect_launch(), timedelta(seconds=60), on_gpu=True):
        mesh = init_device_mesh("cuda", (1, 1), mesh_dim_names=("replicate", "shard"))
        model = network().to("cuda")
        for layer in (model[0], model[2], model):
            fully_shard(layer, mesh=mesh["shard"])
        optimizer = optimizer_of(model)
        exchange = gsdist.attach_hybrid_shard(
            model, EVERYTHING[name], mesh["replicate"], optimizer=optimizer
        )
        train(model, optimizer, "cuda")
        found: list[Tensor] = [p.full_tensor().detach().cpu() for p in model.parameters()]
        assert exchange.stats().steps == STEPS
    for there, here in zip(found, expected.parameters(), strict=True):
        torch.testing.assert_close(there, here.detach(), rtol=1e-4, atol=1e-5)
