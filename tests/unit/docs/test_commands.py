"""Every `gsdist train` in README and documentation has options that exist and values that are allowed."""

import re
import shlex
from pathlib import Path

import pytest

from gsdist.cli.train import parse

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ONES_OWN = {"diabetes"}
"""Workloads that a page tells how to write."""


def commands(page: Path) -> list[list[str]]:
    """Return workload and options of each command in the blocks of code of a page."""
    found = []
    for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "gsdist" in words and "train" in words[words.index("gsdist") + 1 :][:1]:
                found.append(words[words.index("gsdist") + 2 :])
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_understood(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for workload, *options in commands(page):
        if workload in ONES_OWN or "--config" in options:
            continue
        for option in options:
            if option.endswith(".pt"):  # an earlier command wrote it
                file = tmp_path / option
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
        parse(workload, options)


def test_there_are_some() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 25
