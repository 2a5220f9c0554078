"""On a GPU: FSDP2's shards are exchanged after its own streams are done; one worker, over NCCL."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import gsdist
from gsdist.training import detect_launch, process_group
from tests.distributed.test_hybrid_shard import EVERYTHING, STEPS, draw, make_optimizer, network


def train(model: nn.Module, optimizer: torch.optim.Optimizer, device: str) -> None:
    for step in range(STEPS):
        inputs, targets = (tensor.to(device) for tensor in draw(step, rank=0))
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()


@pytest.mark.parametrize("name", EVERYTHING)
def test_equals_training_on_the_cpu_where_everything_is_sent(name: str) -> None:
    expected = network()
    train(expected, make_optimizer(expected), "cpu")
    with process_group(detect_launch(), timedelta(seconds=60), on_gpu=True):
        mesh = init_device_mesh("cuda", (1, 1), mesh_dim_names=("replicate", "shard"))
        model = network().to("cuda")
        for layer in (model[0], model[2], model[4], model):
            fully_shard(layer, mesh=mesh["shard"])
        optimizer = make_optimizer(model)
        exchange = gsdist.attach_hybrid_shard(
            model, EVERYTHING[name], mesh["replicate"], optimizer=optimizer
        )
        train(model, optimizer, "cuda")
        found = [parameter.full_tensor().detach().cpu() for parameter in model.parameters()]
        assert exchange.stats().steps == STEPS
    for there, here in zip(found, expected.parameters(), strict=True):
        torch.testing.assert_close(there, here.detach(), rtol=1e-4, atol=1e-5)
