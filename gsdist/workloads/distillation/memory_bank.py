"""Remember an embedding of every training image, and choose which of them an image is contrasted with.

Source: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, 2018, in the
form of Yang et al., Mutual Contrastive Learning, 2022: with labels, updated after every step.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ContrastChoice", "MemoryBank"]

_KEPT = 0.5
"""Share of a slot that an update keeps."""


class MemoryBank(nn.Module):
    """Hold one vector per training image.

    The slots are a parameter that is not trained: it is saved with the model, equal on all ranks from
    the start, and neither exchanged nor, as buffers are, broadcast in every step.

    Args:
        images: number of training images.
        width: length of an embedding.
    """

    def __init__(self, images: int, width: int) -> None:
        super().__init__()
        bound = math.sqrt(3 / width)
        slots = torch.empty(images, width).uniform_(-bound, bound)
        self.slots = nn.Parameter(slots, requires_grad=False)

    @torch.no_grad()
    def update(self, indices: Tensor, embeddings: Tensor) -> None:
        """Move the slots of images `(N,)` towards their embeddings `(N, width)`, back to norm 1.

        Of an image that occurs more than once the first embedding counts.
        """
        distinct, position = torch.unique(indices, return_inverse=True)
        order = torch.arange(len(indices), device=indices.device)
        first = order.new_full((len(distinct),), len(indices))
        first = first.scatter_reduce(0, position, order, "amin")
        moved = _KEPT * self.slots[distinct] + (1 - _KEPT) * embeddings[first]
        self.slots[distinct] = F.normalize(moved, dim=1).to(self.slots.dtype)


class ContrastChoice:
    """Choose for every image another one of its class, and images of other classes.

    Args:
        labels: classes of all training images, int64 `(n,)`.
        negatives: images of other classes, drawn with replacement.
    """

    def __init__(self, labels: Tensor, negatives: int) -> None:
        self._order = labels.argsort(stable=True)
        self._position = self._order.argsort()
        self._counts = labels.bincount()
        self._starts = self._counts.cumsum(0) - self._counts
        self._negatives = negatives

    def __call__(
        self, indices: Tensor, labels: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Return `(N, 2 + negatives)` indices: the image, one of its class, and the negatives.

        Draws, on the generator's device, uniform numbers for the positives, then for the negatives. An
        image that is alone in its class is its own positive.
        """
        device = torch.device("cpu") if generator is None else generator.device
        home = indices.device
        count = self._counts.to(home)[labels][:, None]
        start = self._starts.to(home)[labels][:, None]
        own = self._position.to(home)[indices][:, None]

        def draw(columns: int, choices: Tensor) -> Tensor:
            numbers = torch.rand(
                len(indices), columns, generator=generator, device=device, dtype=torch.float64
            )
            return (numbers.to(home) * choices).long()

        # The images lie ordered by class; what must not be chosen is stepped over.
        other = start + draw(1, count - 1)
        positive = torch.where(count > 1, other + (other >= own), own)
        negative = draw(self._negatives, len(self._order) - count)
        negative = negative + (negative >= start) * count
        chosen = self._order.to(home)[torch.cat([positive, negative], dim=1)]
        return torch.cat([indices[:, None], chosen], dim=1)
