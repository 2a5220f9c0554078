"""Digits: the split is fixed, complete and without overlap."""

import hashlib

import numpy as np
import torch
from sklearn.datasets import load_digits

from gsdist.data import digits, few_of_each_class, load_dataset


def test_the_split_is_fixed_and_covers_everything_once():
    train_images, train_labels = digits.load("train")
    test_images, test_labels = digits.load("test")
    assert (len(train_labels), len(test_labels)) == (1437, 360)
    original = load_digits()
    images = np.concatenate([train_images, test_images])
    np.testing.assert_array_equal(images[..., 0], original.images * 15)
    np.testing.assert_array_equal(np.concatenate([train_labels, test_labels]), original.target)
    assert hashlib.sha256((images // 15).tobytes()).hexdigest() == (
        "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3"
    )


def test_every_class_is_in_both_splits():
    for split in ("train", "test"):
        assert np.bincount(digits.load(split)[1]).min() >= 30


def test_mean_and_spread_are_those_of_the_training_images():
    data = load_dataset("digits", "train")
    pixels = data.images.double() / 255
    assert abs(pixels.mean().item() - data.format.mean[0]) < 5e-5
    assert abs(pixels.std(correction=0).item() - data.format.std[0]) < 5e-5


def test_few_of_each_class_are_as_many_of_all_and_depend_on_the_seed():
    data = load_dataset("digits", "train")
    few = few_of_each_class(data, 7, seed=0)
    assert few.all_labels().bincount().tolist() == [7] * 10
    assert [few[index][1] for index in range(70)] == few.all_labels().tolist()
    assert few.format == data.format
    originals = {(image.numpy().tobytes(), label) for image, label in data}
    assert all((image.numpy().tobytes(), label) in originals for image, label in few)
    other = few_of_each_class(data, 7, seed=1)
    assert not all(torch.equal(few[index][0], other[index][0]) for index in range(70))
