"""Put gs-SGD into an existing DistributedDataParallel script: the lines marked "gsdist" are all that changes.

torchrun --nproc-per-node 2 examples/ddp_script.py
mpirun -n 2 python examples/ddp_script.py mpi4py
"""

import sys

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import gsdist  # gsdist
import gsdist.collectives.mpi  # gsdist: for mpirun


def digits() -> TensorDataset:
    """Load scikit-learn's digits as tensors."""
    bunch = load_digits()
    images = torch.tensor(bunch.data, dtype=torch.float32) / 16.0
    return TensorDataset(images, torch.tensor(bunch.target))


def main() -> None:
    """Train a small network on all processes of the job."""
    dist.init_process_group(sys.argv[1] if len(sys.argv) > 1 else "gloo")
    torch.manual_seed(0)
    data = digits()
    sampler: DistributedSampler[int] = DistributedSampler(data, drop_last=True)
    loader = DataLoader(data, batch_size=32, sampler=sampler, drop_last=True)

    model = DistributedDataParallel(
        nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    config = gsdist.GsSgdConfig(compression=20)  # gsdist
    exchange = gsdist.attach(model, config, optimizer=optimizer)  # gsdist

    for epoch in range(10):
        sampler.set_epoch(epoch)
        for images, labels in loader:
            optimizer.zero_grad()
            loss = cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
        if dist.get_rank() == 0:
            print(f"epoch {epoch}  loss {loss.item():.4f}")
    if dist.get_rank() == 0:
        sent = exchange.stats()
        print(f"sent {sent.payload_bytes:,} bytes, {sent.compression:.1f}x fewer than dense")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
