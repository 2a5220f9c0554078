"""Shard a model inside a node by FSDP2, and exchange compressed gradients between nodes.

torchrun --nproc-per-node 4 examples/hybrid_shard.py    # 2 replicas of 2 shards
torchrun --nproc-per-node 2 examples/hybrid_shard.py    # 2 replicas of one shard each
"""

import torch
import torch.distributed as dist
from digits import loader_of_this_rank, network
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy

import gsdist  # gsdist


def main() -> None:
    """Train on two replicas, each sharded over half of the processes."""
    dist.init_process_group("gloo")
    shape = (2, dist.get_world_size() // 2)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard"))
    loader = loader_of_this_rank()
    model = network()
    fully_shard(model, mesh=mesh["shard"])  # gsdist
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    config, between = gsdist.GsSgdConfig(compression=10), mesh["replicate"]  # gsdist
    exchange = gsdist.attach_hybrid_shard(model, config, between, optimizer=optimizer)  # gsdist

    for epoch in range(10):
        loader.sampler.set_epoch(epoch)
        for images, labels in loader:
            optimizer.zero_grad()
            loss = cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
        if dist.get_rank() == 0:
            print(f"epoch {epoch}  loss {loss.item():.4f}")
    if dist.get_rank() == 0:
        print(f"{exchange.stats().compression:.1f}x fewer bytes than dense")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
