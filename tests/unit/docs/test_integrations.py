"""Check docs/integrations.md: its diffs are what the examples' lines marked "gsdist" add."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "integrations.md").read_text()
DIFFS = dict(re.findall(r"\[`examples/(\w+)\.py`\].*?```diff\n(.*?)```", PAGE, re.DOTALL))
MARK = "  # gsdist"


def source_of(name: str) -> list[str]:
    return (ROOT / "examples" / f"{name}.py").read_text().splitlines()


def lines(name: str, sign: str) -> list[str]:
    return [line[1:] for line in DIFFS[name].splitlines() if line.startswith(sign)]


def test_every_example_with_marks_has_a_diff() -> None:
    marked = {path.stem for path in (ROOT / "examples").glob("*.py") if MARK in path.read_text()}
    assert marked == set(DIFFS)


@pytest.mark.parametrize("name", DIFFS)
def test_diffs_are_those_of_the_examples(name: str) -> None:
    source = source_of(name)
    added = [line.partition(MARK)[0] for line in source if MARK in line]
    assert lines(name, "+") == added
    bare = [line for line in source if MARK not in line]
    assert [line for line in lines(name, " ") if line and line not in bare] == []
    assert [line for line in lines(name, "-") if line in source] == []


@pytest.mark.parametrize("name", DIFFS)
def test_a_diff_adds_at_most_five_lines(name: str) -> None:
    assert 1 <= len(lines(name, "+")) <= 5
