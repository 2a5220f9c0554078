"""Folder data: labels, shapes, subsets, and folders that would mislabel."""

import numpy as np
import pytest
import torch
from PIL import Image

from gsdist.data import load_dataset
from gsdist.errors import ConfigError, DataError

CLASSES = {"ant": (250, 0, 0), "bee": (0, 250, 0), "cat": (0, 0, 250)}


def _save(path, colour, size=(50, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def root(tmp_path):
    """Images of one colour per class, in other sizes than asked for."""
    for name, colour in CLASSES.items():
        for number in range(4):
            _save(tmp_path / "train" / name / f"{number}.png", colour, (50 + number, 40))
        _save(tmp_path / "val" / name / "0.png", colour)
    return tmp_path


def test_labels_follow_the_sorted_class_names(root):
    for split, count in (("train", 12), ("test", 3)):
        data = load_dataset("image-folder", split, root, image_size=24)
        assert (len(data), data.format.num_classes) == (count, 3)
        for image, label in data:
            assert (image.dtype, image.shape) == (torch.uint8, (3, 24, 24))
            assert image.float().mean((1, 2)).argmax() == label


def test_iteration_reaches_the_end(root):
    assert len(list(load_dataset("image-folder", "test", root))) == 3


def test_default_size_is_that_of_imagenet(root):
    assert load_dataset("image-folder", "test", root)[0][0].shape == (3, 224, 224)


def test_test_images_are_resized_and_cut_in_the_centre(root):
    """Size 28 means resize to 32, which this image has, and a centre of 28."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[14:18, 14:18] = 255
    Image.fromarray(pixels).save(root / "val" / "ant" / "0.png")
    image, _ = load_dataset("image-folder", "test", root, image_size=28)[0]
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), pixels[2:30, 2:30])


def test_training_crops_vary_with_torchs_generator_unless_switched_off(root):
    pixels = np.random.default_rng(0).integers(256, size=(40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "train" / "ant" / "0.png")

    def first(seed, **options):
        torch.manual_seed(seed)
        return load_dataset("image-folder", "train", root, image_size=16, **options)[0][0]

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))
    assert torch.equal(first(1, random_crop=False), first(2, random_crop=False))


def test_subset_is_spread_over_the_classes(root):
    data = load_dataset("image-folder", "train", root, subset=6)
    assert sorted(label for _, label in data) == [0, 0, 1, 1, 2, 2]
    assert len(load_dataset("image-folder", "train", root, subset=100)) == 12


def test_differing_classes_are_refused(root):
    _save(root / "val" / "bat" / "0.png", (0, 0, 0))
    with pytest.raises(DataError, match=r"same class folders.*'bat'"):
        load_dataset("image-folder", "train", root)


def test_missing_folders_and_empty_classes_are_refused(root, tmp_path_factory):
    (root / "train" / "ant").rename(root / "elsewhere")
    (root / "train" / "ant").mkdir()
    with pytest.raises(DataError, match=r"ant"):
        load_dataset("image-folder", "train", root)
    with pytest.raises(DataError, match=r"no folder .*train: the data root must hold"):
        load_dataset("image-folder", "train", tmp_path_factory.mktemp("empty"))


def test_imagenet_wants_its_thousand_classes(root):
    with pytest.raises(DataError, match=r"3 classes, ImageNet has 1000.*'image-folder'"):
        load_dataset("imagenet", "train", root)


def test_imagenet_is_found_in_its_own_folder(tmp_path):
    for number in range(1000):
        for split in ("train", "val"):
            (tmp_path / "imagenet" / split / f"n{number:08}").mkdir(parents=True)
    for folder in (tmp_path / "imagenet" / "val").iterdir():
        (folder / "0.JPEG").touch()
    _save(tmp_path / "imagenet" / "val" / "n00000007" / "0.JPEG", (9, 9, 9))
    data = load_dataset("imagenet", "test", tmp_path)
    assert data.format.num_classes == 1000
    image, label = data[7]
    assert label == 7
    assert image.shape == (3, 224, 224)


def test_image_size_must_be_positive(root):
    with pytest.raises(ConfigError, match=r"image_size must be at least 1 pixel, got 0"):
        load_dataset("image-folder", "train", root, image_size=0)
