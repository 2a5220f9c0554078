"""Prepare batches of images on the device where they lie: random crop, random flip, normalisation.

torchvision.transforms.v2 draws one crop and one flip for a whole batch and takes no generator;
these draw for every image, from the generator given.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["normalize", "random_colours", "random_crop", "random_flip", "random_resized_crop"]

_AREA = (0.2, 1.0)
_ASPECT = (3 / 4, 4 / 3)
_COLOUR_CHANGE = 0.4
_GREY_SHARE = 0.2
_LUMA = (0.299, 0.587, 0.114)


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


def random_resized_crop(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Cut a random window out of every uint8 image `(N, C, H, W)` and scale it to the whole size.

    Windows cover a fifth to all of the area and are between 3:4 and 4:3 wide, cut down to the image where
    they are larger; momentum contrast's choice. One draw of shape `(4, N)`: areas, logarithms of aspect
    ratios, rows, columns. Interpolates linearly.
    """
    count, _, height, width = images.shape
    draws = torch.rand(4, count, generator=generator, device=_home(generator)).to(images.device)
    area = _AREA[0] + (_AREA[1] - _AREA[0]) * draws[0]
    low, high = (math.log(bound) for bound in _ASPECT)
    aspect = (low + (high - low) * draws[1]).exp()
    tall, wide = ((area / aspect).sqrt().clamp(max=1.0), (area * aspect).sqrt().clamp(max=1.0))
    # In affine_grid's coordinates an image reaches from -1 to 1.
    down, right = (1 - tall) * (2 * draws[2] - 1), (1 - wide) * (2 * draws[3] - 1)
    zero = torch.zeros_like(tall)
    window = torch.stack([wide, zero, right, zero, tall, down], dim=1).view(count, 2, 3)
    grid = F.affine_grid(window, [count, 1, height, width], align_corners=False)
    cut = F.grid_sample(images.to(torch.float32), grid, padding_mode="border", align_corners=False)
    return cut.round().to(torch.uint8)


def random_colours(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Change brightness, contrast and saturation of each uint8 image `(N, C, H, W)`; some become grey.

    Factors lie between 0.6 and 1.4; a fifth of the images lose all colour. Momentum contrast changes the
    hue, too. One draw of shape `(4, N)`: the three factors, and who becomes grey. Images of one channel
    have no saturation to change.
    """
    count, channels = images.shape[:2]
    draws = torch.rand(4, count, generator=generator, device=_home(generator)).to(images.device)
    brightness, contrast, saturation = (
        (1 + _COLOUR_CHANGE * (2 * draws[:3] - 1)).view(3, count, 1, 1, 1).unbind()
    )
    values = images.to(torch.float32) * brightness
    middle = _grey(values).mean(dim=(1, 2, 3), keepdim=True)
    values = middle + (values - middle) * contrast
    if channels == len(_LUMA):
        saturation = torch.where(draws[3].view(-1, 1, 1, 1) < _GREY_SHARE, 0.0, saturation)
        grey = _grey(values)
        values = grey + (values - grey) * saturation
    return values.round().clamp(0, 255).to(torch.uint8)


def _grey(values: Tensor) -> Tensor:
    if values.shape[1] != len(_LUMA):
        return values
    weights = torch.tensor(_LUMA, device=values.device).view(-1, 1, 1)
    return (values * weights).sum(1, keepdim=True)


def normalize(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Turn uint8 images `(N, C, H, W)` into float32 `(pixel / 255 - mean) / std`, per channel."""
    shift = torch.tensor(mean, device=images.device).view(-1, 1, 1)
    scale = torch.tensor(std, device=images.device).view(-1, 1, 1)
    return (images.to(torch.float32) / 255 - shift) / scale


def _home(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device
