"""Prepare batches of images on the device where they lie: random crop, random flip, normalisation.

torchvision.transforms.v2 draws one crop and one flip for a whole batch and takes no generator;
these draw for every image, from the generator given.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["normalize", "random_crop", "random_flip"]


def random_crop(images: Tensor, padding: int, generator: torch.Generator | None) -> Tensor:
    """Pad every image `(N, C, H, W)` with zeros on all sides and cut a random `H x W` window out.

    All `(2 * padding + 1)^2` windows are equally likely. The offsets come from `generator` (on any
    device) as one draw of shape `(2, N)`: rows, then columns.
    """
    count, _, height, width = images.shape
    offsets = torch.randint(
        2 * padding + 1, (2, count), generator=generator, device=_home(generator)
    )
    tops, lefts = offsets.to(images.device)
    padded = F.pad(images, (padding, padding, padding, padding))
    rows = tops[:, None] + torch.arange(height, device=images.device)
    columns = lefts[:, None] + torch.arange(width, device=images.device)
    each = torch.arange(count, device=images.device)[:, None, None]
    # Indices on both sides of the channel dimension bring it to the end; permute puts it back.
    windows = padded[each, :, rows[:, :, None], columns[:, None, :]]
    return windows.permute(0, 3, 1, 2).contiguous()


def random_flip(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Mirror each image of `(N, C, H, W)` with probability 1/2; one draw of shape `(N,)`."""
    flips = torch.randint(2, (len(images),), generator=generator, device=_home(generator))
    mirrored = flips.to(images.device, torch.bool)[:, None, None, None]
    return torch.where(mirrored, images.flip(-1), images)


def normalize(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Turn uint8 images `(N, C, H, W)` into float32 `(pixel / 255 - mean) / std`, per channel."""
    shift = torch.tensor(mean, device=images.device).view(-1, 1, 1)
    scale = torch.tensor(std, device=images.device).view(-1, 1, 1)
    return (images.to(torch.float32) / 255 - shift) / scale


def _home(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device
