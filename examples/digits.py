"""Give the examples their data and network: scikit-learn's digits, nothing to download."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def digits() -> TensorDataset:
    """Return 1797 images of 8 x 8, flat and in 0..1, with their labels."""
    bunch = load_digits()
    return TensorDataset(
        torch.tensor(bunch.data, dtype=torch.float32) / 16.0, torch.tensor(bunch.target)
    )


def loader_of_this_rank(batch_size: int = 32) -> DataLoader:
    """Return the loader of this process's share of the digits; call `sampler.set_epoch` in every epoch."""
    data = digits()
    sampler: DistributedSampler = DistributedSampler(data, drop_last=True)
    return DataLoader(data, batch_size=batch_size, sampler=sampler, drop_last=True)


def network() -> nn.Sequential:
    """Return a small network with the same weights on every process."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
