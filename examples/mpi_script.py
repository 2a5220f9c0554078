"""Train under mpirun: the lines marked "MPI" are all that differs from a script for torchrun.

mpirun -n 2 python examples/mpi_script.py
"""

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import gsdist
import gsdist.collectives.mpi  # MPI: registers the backend


def digits() -> TensorDataset:
    """Load scikit-learn's digits as tensors."""
    bunch = load_digits()
    images = torch.tensor(bunch.data, dtype=torch.float32) / 16.0
    return TensorDataset(images, torch.tensor(bunch.target))


def main() -> None:
    """Train a small network on all ranks of the job."""
    dist.init_process_group("mpi4py")  # MPI: no addresses, no ports, no variables
    torch.manual_seed(0)
    data = digits()
    sampler: DistributedSampler[int] = DistributedSampler(data, drop_last=True)
    loader = DataLoader(data, batch_size=32, sampler=sampler, drop_last=True)

    model = DistributedDataParallel(
        nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    exchange = gsdist.attach(model, gsdist.GsSgdConfig(compression=20), optimizer=optimizer)

    for epoch in range(3):
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
