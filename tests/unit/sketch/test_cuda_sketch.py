"""CudaSketch and its neighbours with an emulated GPU: checks, choices, the same bits as the CPU."""

import numpy as np
import pytest
import torch

from gsdist.errors import ConfigError, DeviceError, InputTypeError
from gsdist.sketch import CountSketch, SketchFormat, cuda, cuda_arrays, cuda_launch, select
from gsdist.sketch.cuda_kernels import CudaKernels
from tests.emulation.launcher import EmulatedLauncher

FORMAT = SketchFormat(rows=3, columns=320, seed=2**64 - 3, dimension=5000)


class Recorder(EmulatedLauncher):
    """Remember the kernels that ran."""

    def __init__(self):
        super().__init__()
        self.names = []

    def launch(self, kernel, thread_blocks, arguments):
        self.names.append(kernel)
        super().launch(kernel, thread_blocks, arguments)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU whose memory is that of the CPU; sums in any order unless the test asks for one."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    recorder = Recorder()
    monkeypatch.setattr(cuda_arrays, "_DEVICE", "cpu")
    monkeypatch.setattr(cuda, "cuda_kernels", lambda: CudaKernels(recorder))
    yield recorder
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def both():
    """Return a sketch of the emulated GPU and one of the CPU."""
    return cuda.CudaSketch(FORMAT, torch.zeros(3, 320)), CountSketch(FORMAT, torch.zeros(3, 320))


def fill(sketch):
    generator = torch.Generator().manual_seed(1)
    sketch.encode(torch.randn(4000, generator=generator), 900)
    sketch.encode(torch.randn(4000, generator=generator), 900)
    sketch.encode_sparse(torch.tensor([7, 4999, 7]), torch.ones(3))
    return sketch


def test_equals_the_cpu(gpu):
    on_gpu, on_cpu = map(fill, both())
    assert torch.equal(on_gpu._cells, on_cpu.table)
    for found, expected in zip(on_gpu.heavy_hitters(50), on_cpu.heavy_hitters(50), strict=True):
        assert torch.equal(found, expected)
    assert {"encode_dense_float32", "encode_sparse_float32"} <= set(gpu.names)


def test_deterministic_mode_sorts_once_per_slice(gpu, deterministic):
    on_gpu, on_cpu = map(fill, both())
    assert torch.equal(on_gpu._cells, on_cpu.table)
    assert gpu.names == [
        "locate_blocks",
        "encode_dense_ordered_float32",
        "encode_dense_ordered_float32",
        "locate_entries_float32",
        "encode_sparse_ordered",
    ]


def test_half_precision_is_added_in_float32(gpu):
    values = torch.randn(100, generator=torch.Generator().manual_seed(2)).bfloat16()
    on_gpu, on_cpu = both()
    on_gpu.encode(values)
    on_cpu.encode(values.float())
    assert torch.equal(on_gpu._cells, on_cpu.table)


def test_functions_equal_the_cpu(gpu):
    values = torch.randn(3000, generator=torch.Generator().manual_seed(3))
    assert torch.equal(cuda.top_k(values, 30), select.top_k(values, 30))
    out, expected = torch.empty(3000), torch.empty(3000)
    options = {"momentum": values, "momentum_factor": 0.9, "nesterov": True, "scale": 0.3}
    assert cuda.compensate(out, values, values, **options) == 1
    assert select.compensate(expected, values, values, **options)
    assert torch.equal(out, expected)
    cuda.scatter(out, torch.tensor([5]), torch.tensor([2.0]), scale=0.5)
    assert out[5] == 1
    narrow = torch.empty(3000, dtype=torch.float16)
    cuda.cast(narrow, values, torch.tensor(2.0))
    assert torch.equal(narrow, (2 * values).half())


def test_refuses_what_does_not_fit(gpu):
    sketch, _ = both()
    with pytest.raises(ConfigError, match="offset=1001"):
        sketch.encode(torch.zeros(4000), 1001)
    with pytest.raises(InputTypeError, match="values: expected float32 or float16 or bfloat16"):
        sketch.encode(torch.zeros(5, dtype=torch.float64))
    with pytest.raises(InputTypeError, match="contiguous"):
        sketch.encode(torch.zeros(10)[::2])
    with pytest.raises(ConfigError, match="indices has 1 values, values has 2"):
        sketch.encode_sparse(torch.tensor([1]), torch.zeros(2))
    with pytest.raises(ConfigError, match="k=5001"):
        sketch.heavy_hitters(5001)
    with pytest.raises(ConfigError, match=r"shape \(3, 64\)"):
        cuda.CudaSketch(FORMAT, torch.zeros(3, 64))
    with pytest.raises(InputTypeError, match="multiple of 16 bytes"):
        cuda.CudaSketch(FORMAT, torch.zeros(961)[1:].view(3, 320))
    with pytest.raises(InputTypeError, match="requires a gradient"):
        cuda.top_k(torch.zeros(5, requires_grad=True), 1)
    with pytest.raises(ConfigError, match="momentum is None"):
        cuda.compensate(torch.zeros(5), None, torch.zeros(5), momentum_factor=0.9)
    with pytest.raises(InputTypeError, match="out: expected float16 or bfloat16, got float32"):
        cuda.cast(torch.zeros(5), torch.zeros(5), torch.ones(()))
    with pytest.raises(InputTypeError, match="got list"):
        cuda.top_k([1.0], 1)


def test_refuses_arrays_that_are_not_on_a_gpu():
    with pytest.raises(InputTypeError, match="on device cpu"):
        cuda.top_k(torch.zeros(5), 1)
    with pytest.raises(InputTypeError, match="got ndarray"):
        cuda.top_k(np.zeros(5, np.float32), 1)


def test_a_build_without_kernels_says_what_is_missing(monkeypatch):
    def refuse(name):
        raise ImportError(f"no {name}")

    monkeypatch.setattr(cuda_launch.importlib, "import_module", refuse)
    with pytest.raises(DeviceError, match=r"no gsdist._cuda.*no cupy.*gsdist\[cuda\]"):
        cuda_launch._launcher()
