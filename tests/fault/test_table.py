"""The table of docs/failures.md: every scenario has a test, and every test it names exists."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from gsdist.cli.main import _EXIT_CODES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "failures.md").read_text()
ROWS = re.findall(r"^\| (\d+) \| (.+?) \| (.+?) \| (.+?) \| (`tests/.+) \|$", PAGE, re.MULTILINE)
SCENARIOS = 32


def test_every_scenario_has_a_row_in_order() -> None:
    assert [int(number) for number, *_ in ROWS] == list(range(1, SCENARIOS + 1))


@cache
def functions_of(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("reference", sorted(set(re.findall(r"`(tests/\S+?\.py::\w+)`", PAGE))))
def test_tests_named_on_the_page_exist(reference: str) -> None:
    file, name = reference.split("::")
    assert name in functions_of(file)


def test_exit_codes_are_those_of_the_command_line() -> None:
    codes = {
        int(code) for code in re.findall(r"^\| (\d+) \| [^|]+ \| [^|]+ \|$", PAGE, re.MULTILINE)
    }
    assert set(_EXIT_CODES.values()) <= codes
