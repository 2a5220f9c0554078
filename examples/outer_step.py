"""Let workers train on their own and exchange how far they have come every 8 steps (local SGD, DiLoCo).

torchrun --nproc-per-node 2 examples/outer_step.py
"""

from itertools import count

import torch
import torch.distributed as dist
from digits import loader_of_this_rank, network
from torch.nn.functional import cross_entropy

from gsdist import GsSgdConfig  # gsdist
from gsdist.integrations import OuterStep, OuterStepConfig  # gsdist


def main() -> None:
    """Train a small network on all processes of the job."""
    dist.init_process_group("gloo")
    loader = loader_of_this_rank()
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    every_8 = OuterStepConfig(interval=8)  # gsdist
    outer = OuterStep(model, GsSgdConfig(compression=5), every_8)  # gsdist
    number = count(1)

    for epoch in range(12):
        loader.sampler.set_epoch(epoch)
        for images, labels in loader:
            optimizer.zero_grad()
            loss = cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            outer.step(next(number))  # gsdist
        if dist.get_rank() == 0:
            print(f"epoch {epoch}  loss {loss.item():.4f}")
    if dist.get_rank() == 0:
        print(f"{outer.stats().compression:.1f}x fewer bytes than dense")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
