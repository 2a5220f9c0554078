"""Put gs-SGD into an existing DistributedDataParallel script: the lines marked "gsdist" are all that changes.

torchrun --nproc-per-node 2 examples/ddp_script.py
mpirun -n 2 python examples/ddp_script.py mpi4py
"""

import sys

import torch
import torch.distributed as dist
from digits import loader_of_this_rank, network
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import gsdist  # gsdist
import gsdist.collectives.mpi  # gsdist: for mpirun


def main() -> None:
    """Train a small network on all processes of the job."""
    dist.init_process_group(sys.argv[1] if len(sys.argv) > 1 else "gloo")
    loader = loader_of_this_rank()
    model = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    config = gsdist.GsSgdConfig(compression=20)  # gsdist
    exchange = gsdist.attach(model, config, optimizer=optimizer)  # gsdist

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
