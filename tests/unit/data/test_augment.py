"""Augmentation on batches equals augmenting image by image with the same draws."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsdist.data import (
    normalize,
    random_colours,
    random_crop,
    random_flip,
    random_resized_crop,
)


def _images(count, channels, height, width):
    generator = torch.Generator().manual_seed(0)
    shape = (count, channels, height, width)
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=generator)


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 9),
    channels=st.integers(1, 4),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    padding=st.integers(0, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_crop_equals_cutting_image_by_image(count, channels, height, width, padding, seed):
    images = _images(count, channels, height, width)
    cropped = random_crop(images, padding, _generator(seed))
    offsets = torch.randint(2 * padding + 1, (2, count), generator=_generator(seed))
    assert (cropped.shape, cropped.dtype) == (images.shape, images.dtype)
    for n in range(count):
        for channel in range(channels):
            padded = np.pad(images[n, channel].numpy(), padding)
            top, left = offsets[:, n].tolist()
            expected = padded[top : top + height, left : left + width]
            np.testing.assert_array_equal(cropped[n, channel].numpy(), expected)


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 20), seed=st.integers(0, 2**32 - 1))
def test_flip_equals_mirroring_image_by_image(count, seed):
    images = _images(count, 3, 4, 5)
    flipped = random_flip(images, _generator(seed))
    chosen = torch.randint(2, (count,), generator=_generator(seed))
    for n in range(count):
        original = images[n].numpy()
        expected = original[:, :, ::-1] if chosen[n] else original
        np.testing.assert_array_equal(flipped[n].numpy(), expected)


def test_all_crops_and_flips_are_equally_likely():
    count, padding = 9 * 400, 1
    marked = torch.zeros(count, 1, 3, 3, dtype=torch.uint8)
    marked[:, 0, 1, 1] = 1
    positions = random_crop(marked, padding, _generator()).flatten(1).nonzero()[:, 1]
    frequencies = torch.bincount(positions, minlength=9)
    # 400 expected each; the standard deviation of one is 19.
    assert frequencies.sum() == count
    assert (frequencies - 400).abs().max() < 5 * 19
    edge = torch.tensor([[1, 0]], dtype=torch.uint8).expand(count, 1, 1, 2)
    mirrored = random_flip(edge, _generator())[:, 0, 0, 1].sum().item()
    assert abs(mirrored - count / 2) < 5 * (count / 4) ** 0.5


def test_resized_crops_are_windows_of_the_published_sizes():
    count, size = 400, 64
    ramp = torch.arange(size, dtype=torch.uint8) * 3
    across = random_resized_crop(ramp.expand(count, 1, size, size), _generator())
    down = random_resized_crop(ramp[:, None].expand(count, 1, size, size), _generator())
    assert (across.shape, across.dtype) == ((count, 1, size, size), torch.uint8)
    # A window's width in pixels is how far the ramp rises in it; all its rows are alike.
    assert torch.equal(across, across[:, :, :1].expand_as(across))
    wide, tall = (
        (line[:, -3] - line[:, 2]) / 3 / (size - 5)
        for line in (across[:, 0, 0].double(), down[:, 0, :, 0].double())
    )
    area, aspect = wide * tall, wide / tall
    assert area.min() > 0.2 - 0.03
    assert area.max() > 0.85
    assert (aspect.min(), aspect.max()) > (3 / 4 - 0.05, 1.2)
    assert aspect.max() < 4 / 3 + 0.05
    assert across[:, 0, 0, 0].min() == 0
    assert across.max() == 63 * 3


def test_colours_change_by_the_published_factors_and_some_are_lost():
    count = 900
    images = torch.tensor([90, 60, 120], dtype=torch.uint8).view(1, 3, 1, 1).expand(count, 3, 2, 2)
    changed = random_colours(images, _generator()).double()
    assert torch.equal(changed, changed[:, :, :1, :1].expand_as(changed))
    # Contrast leaves a uniform grey alone, and saturation keeps the luma, so brightness remains.
    luma = (changed[:, :, 0, 0] * torch.tensor([0.299, 0.587, 0.114]).double()).sum(1)
    factor = luma / (0.299 * 90 + 0.587 * 60 + 0.114 * 120)
    assert factor.min() > 0.59
    assert factor.max() < 1.41
    assert factor.std() == pytest.approx(0.8 / 12**0.5, rel=0.1)
    grey = (changed.amax(1) - changed.amin(1) <= 1).all(-1).all(-1)
    assert abs(grey.sum().item() - count / 5) < 5 * (count * 0.2 * 0.8) ** 0.5


def test_contrast_spreads_a_grey_image_around_its_mean():
    images = torch.tensor([80, 120], dtype=torch.uint8).view(1, 1, 1, 2).expand(300, 1, 2, 2)
    changed = random_colours(images, _generator()).double()
    spread = (changed[..., 1] - changed[..., 0]) / changed.mean((1, 2, 3))[:, None, None] / 0.4
    assert spread.min() == pytest.approx(0.6, abs=0.03)
    assert spread.max() == pytest.approx(1.4, abs=0.03)


@pytest.mark.parametrize(
    "augment",
    [lambda x, g: random_crop(x, 4, g), random_flip, random_resized_crop, random_colours],
)
def test_draws_depend_on_the_generator_alone(augment):
    images = _images(16, 3, 32, 32)
    torch.manual_seed(1)
    first = augment(images, _generator(5))
    torch.manual_seed(2)
    assert torch.equal(first, augment(images, _generator(5)))
    assert not torch.equal(first, augment(images, _generator(6)))
    generator = _generator(5)
    augment(images, generator)
    assert not torch.equal(first, augment(images, generator))


def test_without_generator_torchs_own_is_used():
    images = _images(16, 3, 8, 8)
    torch.manual_seed(5)
    expected = random_flip(random_crop(images, 2, None), None)
    torch.manual_seed(5)
    assert torch.equal(random_flip(random_crop(images, 2, None), None), expected)


def test_normalize_matches_numpy():
    images = _images(3, 2, 4, 4)
    mean, std = (0.25, 0.5), (0.125, 0.3)
    result = normalize(images, mean, std)
    scaled = images.numpy().astype(np.float64) / 255
    shift, scale = np.reshape(mean, (2, 1, 1)), np.reshape(std, (2, 1, 1))
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), (scaled - shift) / scale, rtol=1e-5, atol=1e-6)
