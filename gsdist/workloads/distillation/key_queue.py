"""Remember the newest embeddings of the training images: the queue of momentum contrast.

Source: He et al., Momentum Contrast for Unsupervised Visual Representation Learning, 2020, section 3.2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["KeyQueue"]


class KeyQueue(nn.Module):
    """Hold the newest keys of every peer, oldest replaced first, and the labels of their images.

    All are parameters that are not trained: they are saved with the model, equal on all ranks, and
    neither exchanged nor, as buffers are, broadcast in every step.

    Args:
        peers: number of peers.
        size: keys of each.
        width: length of a key.
    """

    def __init__(self, peers: int, size: int, width: int) -> None:
        super().__init__()
        keys = F.normalize(torch.randn(peers, size, width), dim=2)
        self.keys = nn.Parameter(keys, requires_grad=False)
        self.labels = nn.Parameter(torch.full((size,), -1), requires_grad=False)
        """Class of each key's image, only to measure by; -1: the key is of no image yet."""
        self.seen = nn.Parameter(torch.tensor(0), requires_grad=False)
        """Number of keys that have come in."""

    @torch.no_grad()
    def update(self, keys: Tensor, labels: Tensor) -> None:
        """Take in keys `(peers, N, width)` of images with labels `(N,)`; of too many the last."""
        size = len(self.labels)
        keys, labels = keys[:, -size:], labels[-size:]
        slots = (self.seen + torch.arange(len(labels), device=labels.device)) % size
        self.keys[:, slots] = keys.to(self.keys.dtype)
        self.labels[slots] = labels
        self.seen.add_(len(labels))

    def nearest(self, peer: int, embeddings: Tensor) -> Tensor:
        """Return the labels `(N,)` of the keys most similar to a peer's embeddings `(N, width)`."""
        return self.labels[(embeddings @ self.keys[peer].T).argmax(1)]
