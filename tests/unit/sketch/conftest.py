import numpy as np
import pytest

from gsdist.sketch import backend, reference


@pytest.fixture
def native():
    """The extension's wrapper; skipped where it is not built, unless it is required."""
    return pytest.importorskip("gsdist.sketch.native", exc_type=ImportError)


@pytest.fixture(params=["numba", "native"])
def kernels(request):
    """Each backend in turn."""
    return reference if request.param == "numba" else request.getfixturevalue("native")


@pytest.fixture
def rng():
    return np.random.default_rng(20021107)


@pytest.fixture(autouse=True)
def threads():
    """Leave the number of threads as it was."""
    before = backend.get_num_threads()
    yield
    backend.set_num_threads(before)
