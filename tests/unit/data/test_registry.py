"""Data sets by name: items, subsets, descriptions and refusals."""

import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from gsdist.data import FETCHABLE, check_dataset_name, describe, digits, fetch, load_dataset
from gsdist.errors import ConfigError


def test_items_are_uint8_images_and_int_labels():
    data = load_dataset("digits", "train")
    images, labels = digits.load("train")
    image, label = data[5]
    assert (image.dtype, image.shape, type(label)) == (torch.uint8, (1, 8, 8), int)
    assert torch.equal(image[0], torch.from_numpy(images[5, :, :, 0]))
    assert label == labels[5]


def test_subset_takes_the_first_images():
    whole, part = load_dataset("digits", "train"), load_dataset("digits", "train", subset=7)
    assert len(part) == 7
    assert all(torch.equal(part[i][0], whole[i][0]) for i in range(7))
    assert len(load_dataset("digits", "train", subset=10**6)) == len(whole)


def test_data_loader_makes_batches_of_them():
    images, labels = next(iter(DataLoader(load_dataset("digits", "test"), batch_size=16)))
    assert (images.dtype, images.shape) == (torch.uint8, (16, 1, 8, 8))
    assert (labels.dtype, labels.shape) == (torch.int64, (16,))


def test_data_sets_travel_to_worker_processes():
    data = load_dataset("digits", "test", subset=3)
    copy = pickle.loads(pickle.dumps(data))
    assert copy.format == data.format
    assert torch.equal(copy[2][0], data[2][0])


def test_descriptions_cover_all_names():
    names = [info.name for info in describe()]
    images = ["cifar10", "cifar100", "fashion-mnist", "digits", "image-folder"]
    images += ["tiny-imagenet", "imagenet"]
    graphs = ["films", "wordnet", "hetero-sbm", "dblp", "imdb", "last-fm"]
    assert names == [*images, "shakespeare", "python-source", "text-folder", *graphs]
    for info in describe():
        check_dataset_name(info.name, info.kind)
        assert all((info.content, info.source, info.licence))
        assert (info.name in FETCHABLE) == (f"gsdist data {info.name}" in info.source)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("mnist-fashion", "train"), {}, "unknown data set 'mnist-fashion'.*known are cifar10"),
        (("digits", "val"), {}, "split must be 'train' or 'test', got 'val'"),
        (("digits", "train"), {"subset": 0}, "subset must be at least 1 image, got 0"),
        (("digits", "train"), {"image_size": 16}, "image_size=16.*8 pixels"),
    ],
)
def test_bad_requests_are_refused(arguments, options, message):
    with pytest.raises(ConfigError, match=message):
        load_dataset(*arguments, **options)


def test_only_fetchable_data_is_fetched(tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"comes with scikit-learn.*cifar10, fashion-mnist, films, shakespeare and wordnet are",
    ):
        fetch("digits", tmp_path)
    with pytest.raises(ConfigError, match=r"unknown data set 'cifar'.*'cifar10'"):
        fetch("cifar", tmp_path)
