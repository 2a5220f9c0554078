"""Tiny-ImageNet's folder, made in small: labels of both splits, subsets and refusals."""

import pytest
import torch
from PIL import Image

from gsdist.data import load_dataset
from gsdist.errors import ConfigError, DataError

COLOURS = {"n02": (250, 0, 0), "n01": (0, 250, 0), "n03": (0, 0, 250)}
CHANNEL_BY_LABEL = [1, 0, 2]
"""The strongest channel of the classes in the order of their names."""


def _save(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), colour).save(path)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "tiny-imagenet-200"
    rows = []
    for name, colour in COLOURS.items():
        for number in range(3):
            _save(folder / "train" / name / "images" / f"{name}_{number}.JPEG", colour)
        _save(folder / "val" / "images" / f"val_{name}.JPEG", colour)
        rows.append(f"val_{name}.JPEG\t{name}\t0\t0\t63\t63\n")
    Image.new("L", (64, 64), 9).save(folder / "train" / "n01" / "images" / "n01_grey.JPEG")
    (folder / "val" / "val_annotations.txt").write_text("".join(rows))
    return tmp_path


def test_both_splits_number_classes_alike(root):
    for split, counts in (("train", [4, 3, 3]), ("test", [1, 1, 1])):
        data = load_dataset("tiny-imagenet", split, root)
        labels = data.all_labels()
        assert torch.bincount(labels).tolist() == counts
        for index in range(len(data)):
            image, label = data[index]
            assert (image.dtype, image.shape, label) == (
                torch.uint8, (3, 64, 64), labels[index],
            )  # fmt: skip
            if image.float().std() > 20:  # not the grey one
                assert image.float().mean((1, 2)).argmax() == CHANNEL_BY_LABEL[label]


def test_subset_is_spread_over_the_classes(root):
    # Of ten sorted images (4 + 3 + 3) the ones at 0, 3 and 6.
    data = load_dataset("tiny-imagenet", "train", root, subset=3)
    assert data.all_labels().tolist() == [0, 0, 1]


def test_images_are_scaled_whole(root):
    left_dark = Image.new("RGB", (64, 64), (200, 200, 200))
    left_dark.paste((20, 20, 20), (0, 0, 32, 64))
    left_dark.save(root / "tiny-imagenet-200" / "train" / "n01" / "images" / "n01_0.JPEG")
    data = load_dataset("tiny-imagenet", "train", root, image_size=32)
    image, _ = data[0]
    assert (data.format.image_size, image.shape) == (32, (3, 32, 32))
    assert image[:, :, :15].float().mean() == pytest.approx(20, abs=2)
    assert image[:, :, 17:].float().mean() == pytest.approx(200, abs=2)


def test_incomplete_folders_are_refused(root):
    with pytest.raises(ConfigError, match=r"image_size must be at least 1 pixel, got 0"):
        load_dataset("tiny-imagenet", "train", root, image_size=0)
    (root / "tiny-imagenet-200" / "val" / "val_annotations.txt").write_text("a.JPEG\tn77\n")
    with pytest.raises(DataError, match=r"val_annotations.*'n77'.*unpack"):
        load_dataset("tiny-imagenet", "test", root)
    with pytest.raises(
        DataError, match=r"does not hold Tiny-ImageNet: unpack tiny-imagenet-200.zip"
    ):
        load_dataset("tiny-imagenet", "train", root / "elsewhere")
