"""Check the numbers on docs/sketch-format.md, read from the page itself."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from gsdist.sketch import CountSketch, SketchFormat
from gsdist.sketch.reference import block_words
from tests.unit.sketch import oracle

PAGE = (Path(__file__).parents[3] / "docs" / "sketch-format.md").read_text()


def section(title):
    """Return the text below a heading, up to the next heading."""
    return re.split(r"^#+ ", PAGE.split(f" {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def rows_of(text):
    """Return the cells of the table rows in a text, without its heading."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines[2:]]


HASHES = rows_of(section("Hash"))


def test_the_page_has_hash_vectors():
    assert len(HASHES) == 5


@pytest.mark.parametrize("row", HASHES, ids=lambda row: f"seed-{row[0]}")
def test_hash_vectors(row):
    seed, q, index, columns = map(int, row[:4])
    key, signs, position = (int(word, 16) for word in row[4:7])
    bucket, swap, cell, sign = map(int, row[7:])
    assert oracle.words(seed, q, index >> 6) == (key, signs, position)
    assert oracle.place(seed, q, index, columns) == (cell, sign)
    assert cell == bucket * 64 + (index % 64 ^ swap)
    words = block_words(*(np.uint64(value) for value in (seed, q, index >> 6, columns)))
    assert tuple(map(int, words)) == (signs, bucket * 64, swap)


def test_first_row_key_of_seed_0_is_splitmix64s_first_output():
    """0xE220A8397B1DCDAF is the value published with SplitMix64's reference code."""
    assert int(HASHES[0][4], 16) == 0xE220A8397B1DCDAF


def test_table_vector():
    expected = np.zeros((3, 64), np.float32)
    for row, cells in rows_of(section("Table")):
        for cell, value in (pair.split(":") for pair in cells.split(",")):
            expected[int(row), int(cell)] = float(value)
    sketch = CountSketch(SketchFormat(rows=3, columns=64, seed=7, dimension=1000))
    values = np.array([1, -2, 0.5, 4], np.float32)
    sketch.encode(values, 62)
    assert np.array_equal(sketch.table, expected) and np.count_nonzero(expected) == 10
    assert np.array_equal(sketch.estimate(np.arange(62, 66)), values)


def test_bytes_vector():
    expected = bytes.fromhex(section("Bytes").split("```")[1])
    sketch = CountSketch(SketchFormat(rows=1, columns=64, seed=7, dimension=1000))
    sketch.encode_sparse(np.array([62, 999]), np.array([1, -2.5], np.float32))
    assert sketch.to_bytes("float16") == expected
    back = CountSketch.from_bytes(expected)
    assert back.format == sketch.format and np.array_equal(back.table, sketch.table)


def test_failure_probabilities():
    heading, _, line = [
        line for line in section("Error bounds").splitlines() if line.startswith("|")
    ][-3:]
    rows, stated = (
        [cell.strip() for cell in text.strip("|").split("|")[1:]] for text in (heading, line)
    )
    for r, probability in zip(map(int, rows), map(float, stated), strict=True):
        exact = sum(math.comb(r, j) * 0.25**j * 0.75 ** (r - j) for j in range(r // 2 + 1, r + 1))
        assert probability - 1e-4 < exact <= probability


def test_tests_named_on_the_page_exist():
    sources = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", PAGE)
    assert len(named) > 10
    assert [name for name in named if f"def {name}(" not in sources] == []
