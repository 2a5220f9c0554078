"""Train replicas that may come and go, under torchft: the lines marked "gsdist" are all that changes.

torchft_lighthouse --min_replicas 1 --join_timeout_ms 10000
TORCHFT_LIGHTHOUSE=http://localhost:29510 python examples/with_torchft.py 0    # kill it, start it again
TORCHFT_LIGHTHOUSE=http://localhost:29510 python examples/with_torchft.py 1
"""

import os
import sys
from typing import Any

import torch
import torch.distributed as dist
import torchft
from digits import digits, network
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import gsdist  # gsdist

REPLICAS, STEPS = 2, 300


def main() -> None:
    """Train replica number `sys.argv[1]` until all have taken so many steps."""
    number = int(sys.argv[1])
    data = digits()
    sampler = torchft.DistributedSampler(data, number, REPLICAS, group_rank=0, num_replicas=1)
    loader = DataLoader(data, batch_size=32, sampler=sampler, drop_last=True)
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    model = network()

    def state_dict() -> dict[str, Any]:
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}

    def load_state_dict(state: dict[str, Any]) -> None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])

    manager = torchft.Manager(
        pg=torchft.ProcessGroupGloo(),
        load_state_dict=load_state_dict,
        state_dict=state_dict,
        min_replica_size=1,
        use_async_quorum=False,
        rank=0,
        world_size=1,
        store_addr="localhost",
        store_port=store.port,
        replica_id=f"replica_{number}",
    )
    inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = torchft.Optimizer(manager, inner)
    exchange = gsdist.attach_torchft(model, gsdist.GsSgdConfig(compression=20), optimizer)  # gsdist

    epoch = 0
    while manager.current_step() < STEPS:
        sampler.set_epoch(epoch)
        for images, labels in loader:
            optimizer.zero_grad()
            loss = cross_entropy(model(images), labels)
            loss.backward()
            exchange.average_gradients()  # gsdist
            optimizer.step()
            if manager.current_step() >= STEPS:
                break
        print(f"epoch {epoch}  loss {loss.item():.4f}", flush=True)
        epoch += 1
    print(f"{exchange.stats().compression:.1f}x fewer bytes than dense", flush=True)
    manager.shutdown(wait=False)
    os._exit(0)  # torchft's servers are threads that would be waited for


if __name__ == "__main__":
    main()
