"""Train with autocast: in bfloat16, or in float16 with a GradScaler.

torchrun --nproc-per-node 2 examples/mixed_precision.py bfloat16
torchrun --nproc-per-node 2 examples/mixed_precision.py float16
"""

import sys

import torch
import torch.distributed as dist
from digits import loader_of_this_rank, network
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import gsdist  # gsdist


def main() -> None:
    """Train a small network on all processes of the job."""
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}[sys.argv[1]]
    dist.init_process_group("gloo")
    loader = loader_of_this_rank()
    model = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    config = gsdist.GsSgdConfig(compression=20)  # gsdist
    exchange = gsdist.attach(model, config, grad_scaler=scaler)  # gsdist

    for epoch in range(10):
        loader.sampler.set_epoch(epoch)
        for images, labels in loader:
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype):
                loss = cross_entropy(model(images), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        if dist.get_rank() == 0:
            print(f"epoch {epoch}  loss {loss.item():.4f}")
    if dist.get_rank() == 0:
        print(f"{exchange.stats().compression:.1f}x fewer bytes than dense")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
