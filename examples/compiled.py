"""Compile the model with torch.compile; the hook runs outside what is compiled.

torchrun --nproc-per-node 2 examples/compiled.py
"""

import torch
import torch.distributed as dist
from digits import loader_of_this_rank, network
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import gsdist  # gsdist


def main() -> None:
    """Train a small network on all processes of the job."""
    dist.init_process_group("gloo")
    loader = loader_of_this_rank()
    model = DistributedDataParallel(network())
    exchange = gsdist.attach(model, gsdist.GsSgdConfig(compression=20))  # gsdist
    compiled = torch.compile(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    for epoch in range(10):
        loader.sampler.set_epoch(epoch)
        for images, labels in loader:
            optimizer.zero_grad()
            loss = cross_entropy(compiled(images), labels)
            loss.backward()
            optimizer.step()
        if dist.get_rank() == 0:
            print(f"epoch {epoch}  loss {loss.item():.4f}")
    if dist.get_rank() == 0:
        print(f"{exchange.stats().compression:.1f}x fewer bytes than dense")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
