"""Fashion-MNIST: idx files in either place and either compression; anything else is refused."""

import gzip
import hashlib
import struct

import numpy as np
import pytest

from gsdist.data import fashion_mnist
from gsdist.errors import DataError

COUNTS = {"train": 5, "t10k": 3}


@pytest.fixture(scope="module")
def content():
    """Per prefix images and labels, and the idx files that hold them."""
    rng = np.random.default_rng(1)
    arrays, files = {}, {}
    for prefix, count in COUNTS.items():
        images = rng.integers(256, size=(count, 28, 28), dtype=np.uint8)
        labels = rng.integers(10, size=count, dtype=np.uint8)
        arrays[prefix] = images, labels
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        files[f"{prefix}-images-idx3-ubyte"] = header + images.tobytes()
        files[f"{prefix}-labels-idx1-ubyte"] = struct.pack(">II", 0x801, count) + labels.tobytes()
    return arrays, files


@pytest.fixture(scope="module")
def checksums(content):
    return {name: hashlib.sha256(data).hexdigest() for name, data in content[1].items()}


def _write(folder, files, *, compressed):
    folder.mkdir(parents=True)
    for name, data in files.items():
        if compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(data))
        else:
            (folder / name).write_bytes(data)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("place", ["torchvision", "debian"])
def test_both_places_and_forms_are_read_bit_for_bit(
    tmp_path, content, checksums, place, compressed
):
    arrays, files = content
    root, debian = tmp_path / "root", tmp_path / "debian"
    folder = debian if place == "debian" else root / "FashionMNIST" / "raw"
    _write(folder, files, compressed=compressed)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = fashion_mnist.load(split, root, debian_folder=debian, checksums=checksums)
        assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
        np.testing.assert_array_equal(images, arrays[prefix][0][..., None])
        np.testing.assert_array_equal(labels, arrays[prefix][1])


def test_valid_data_is_not_fetched_again(tmp_path, content, checksums):
    folder = tmp_path / "root" / "FashionMNIST" / "raw"
    _write(folder, content[1], compressed=True)
    found = fashion_mnist.fetch(
        tmp_path / "root", time_limit=1, debian_folder=tmp_path / "none", checksums=checksums
    )
    assert found == folder


@pytest.mark.parametrize("damage", ["one bit", "cut off", "missing"])
def test_damaged_files_are_refused(tmp_path, content, checksums, damage):
    folder = tmp_path / "FashionMNIST" / "raw"
    _write(folder, content[1], compressed=True)
    path = folder / "train-images-idx3-ubyte.gz"
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[-1] ^= 1
    if damage == "one bit":
        path.write_bytes(gzip.compress(data))
    elif damage == "cut off":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        path.unlink()
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.*gsdist data fashion-mnist"):
        fashion_mnist.load("train", tmp_path, checksums=checksums)


def test_missing_data_names_both_places_and_the_commands(tmp_path):
    with pytest.raises(
        DataError, match=r"FashionMNIST.*debian.*gsdist data.*apt-get install dataset-fashion-mnist"
    ):
        fashion_mnist.load("train", tmp_path, debian_folder=tmp_path / "debian")
