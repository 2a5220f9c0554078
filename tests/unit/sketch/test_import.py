"""Import without torch, without the extension, and with the extension required."""

import os
import subprocess
import sys

ROUND_TRIP = """
import numpy as np
from gsdist.sketch import CountSketch, SketchFormat, backend
sketch = CountSketch(SketchFormat(rows=3, columns=128, seed=1, dimension=1000))
sketch.encode_sparse(np.array([5, 900]), np.array([3, -4], np.float32))
indices, values = CountSketch.from_bytes(sketch.to_bytes()).heavy_hitters(2)
print(backend.build_info()["backend"], indices.tolist(), values.tolist(), "torch" in sys.modules)
"""


def run(*blocked, require=None):
    """Run the round trip in a fresh interpreter in which some modules cannot be imported."""
    code = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in blocked)
    environment = {k: v for k, v in os.environ.items() if k != "GSDIST_REQUIRE_EXT"}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if require is not None:
        environment["GSDIST_REQUIRE_EXT"] = require
    return subprocess.run(
        [sys.executable, "-c", code + ROUND_TRIP],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_works_without_torch(native):
    done = run("torch")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(maxsplit=1) == ["native", "[5, 900] [3.0, -4.0] True\n"]
    # sys.modules holds the block itself; what matters is that nothing imported torch past it.
    assert done.stderr == ""


def test_falls_back_to_numba_with_one_warning():
    done = run("gsdist._native", "torch")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("numba [5, 900] [3.0, -4.0]")
    assert done.stderr.count("Warning") == 1
    assert "falling back to numba" in done.stderr and "slower" in done.stderr
    assert "pip install" in done.stderr


def test_a_required_extension_that_is_missing_is_an_error():
    done = run("gsdist._native", "torch", require="1")
    assert done.returncode != 0
    assert "ImportError: GSDIST_REQUIRE_EXT=1" in done.stderr
    assert "pip install" in done.stderr


def test_a_required_extension_that_is_there_is_used(native):
    done = run("torch", require="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("native ")


def test_an_extension_of_another_format_is_not_used():
    stale = """
import types
sys.modules["gsdist._native"] = stale = types.ModuleType("gsdist._native")
stale.build_info = lambda: {"format_version": 2}
import gsdist
gsdist._native = stale
"""
    code = "import sys\nsys.modules['torch'] = None\n" + stale + ROUND_TRIP
    environment = {k: v for k, v in os.environ.items() if k != "GSDIST_REQUIRE_EXT"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("numba ")
    assert "built for sketch format 2" in done.stderr
