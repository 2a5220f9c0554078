"""Check docs/expectations.md: every test it names exists, and no row claims a yes without showing it."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "expectations.md").read_text().splitlines()
    if line.startswith("| **")
]
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def test_every_row_has_an_answer() -> None:
    assert len(ROWS) == 29
    assert {answer for _, answer, _ in ROWS} <= {"yes", "partly", "no"}


def test_named_tests_exist() -> None:
    named = {found for *_, shown in ROWS for found in TEST.findall(shown)}
    assert len(named) > 30
    missing = [
        f"{path}::{name}"
        for path, name in named
        if f"\ndef {name}(" not in (ROOT / path).read_text()
    ]
    assert missing == []


def test_a_yes_is_shown() -> None:
    unshown = [row[0] for row in ROWS if row[1] == "yes" and not re.search("[`(]", row[2])]
    assert unshown == []
