"""Count the batches of an epoch that can be begun anywhere."""

from torch.utils.data import Sampler

__all__ = ["EpochBatches"]


class EpochBatches(Sampler[list[int]]):
    """Yield batches of indices of epoch `epoch`, beginning at `first_batch`; subclasses say which.

    Args:
        batches_per_epoch: number of batches of a whole epoch.
    """

    def __init__(self, batches_per_epoch: int) -> None:
        self.batches_per_epoch = batches_per_epoch
        self.epoch = 0
        self.first_batch = 0

    def __len__(self) -> int:
        return self.batches_per_epoch - self.first_batch
