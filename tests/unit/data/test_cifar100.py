"""CIFAR-100 from torchvision's folder, made in small, and refusals."""

import hashlib
import pickle

import numpy as np
import pytest

from gsdist.data import load_dataset
from gsdist.errors import DataError


def _write(root, images, labels):
    """Write the pickled files that torchvision unpacks, and return their md5 sums by name."""
    folder = root / "cifar-100-python"
    folder.mkdir()
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    split = pickle.dumps(
        {"data": planes, "fine_labels": labels, "coarse_labels": [0] * len(labels)}
    )
    meta = pickle.dumps({"fine_label_names": [str(number) for number in range(100)]})
    for name, content in {"train": split, "test": split, "meta": meta}.items():
        (folder / name).write_bytes(content)
    return hashlib.md5(split).hexdigest(), hashlib.md5(meta).hexdigest()


def test_torchvisions_folder_gives_images_and_fine_labels(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR100

    images = np.random.default_rng(0).integers(256, size=(5, 32, 32, 3), dtype=np.uint8)
    split_sum, meta_sum = _write(tmp_path, images, [99, 3, 0, 41, 7])
    # torchvision keeps the published sums in its class; these files have others.
    monkeypatch.setattr(CIFAR100, "train_list", [["train", split_sum]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", split_sum]])
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": meta_sum})
    for split in ("train", "test"):
        data = load_dataset("cifar100", split, tmp_path)
        assert data.format.num_classes == 100
        assert data.all_labels().tolist() == [99, 3, 0, 41, 7]
        np.testing.assert_array_equal(data[1][0].permute(1, 2, 0).numpy(), images[1])


def test_other_content_is_refused(tmp_path):
    _write(tmp_path, np.zeros((1, 32, 32, 3), np.uint8), [0])
    with pytest.raises(DataError, match=r"cifar-100-python.*published CIFAR100.*unpack"):
        load_dataset("cifar100", "train", tmp_path)


def test_missing_data_names_the_archive(tmp_path):
    with pytest.raises(DataError, match=rf"not in {tmp_path}: unpack cifar-100-python.tar.gz"):
        load_dataset("cifar100", "test", tmp_path)
