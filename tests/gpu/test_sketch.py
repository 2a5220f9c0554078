"""On a GPU: the same bits as the CPU where the order is fixed, the same to rounding elsewhere."""

import pytest
import torch

from gsdist.sketch import CountSketch, SketchFormat, cuda, cuda_launch, select
from gsdist.sketch.cuda_kernels import CudaKernels
from gsdist.sketch.cuda_launch import cuda_kernels
from tests.emulation.cases import differ_within_rounding, nearly_tied

SIZES = [1, 63, 64, 65, 255, 256, 257, 1023, 1024, 1025, 1_000_003]
NUMBERS = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(params=["nvcc", "NVRTC"], autouse=True)
def kernels(request, monkeypatch):
    """The kernels as nvcc built them, and as NVRTC compiles them."""
    if request.param == "nvcc":
        pytest.importorskip("gsdist._cuda", reason="built without nvcc")
        chosen = cuda_kernels()
    else:
        cupy = pytest.importorskip("cupy", reason="NVRTC is reached through CuPy")
        chosen = CudaKernels(cuda_launch._CompiledLauncher(cupy))
    monkeypatch.setattr(cuda, "cuda_kernels", lambda: chosen)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)


def normals(size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def format_for(size, rows=5):
    return SketchFormat(rows=rows, columns=4096, seed=9, dimension=size + 100)


def both(sketch_format):
    shape = sketch_format.table_shape
    return (
        cuda.CudaSketch(sketch_format, torch.zeros(shape, device="cuda")),
        CountSketch(sketch_format, torch.zeros(shape)),
    )


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("size", SIZES)
def test_deterministic_encoding_has_the_bits_of_the_cpu(deterministic, size, number):
    on_gpu, on_cpu = both(format_for(size))
    values = normals(size).to(number)
    indices = torch.randint(size, (size,), generator=torch.Generator().manual_seed(1))
    on_gpu.encode(values.cuda(), 37)
    on_gpu.encode_sparse(indices.cuda(), values.cuda())
    on_cpu.encode(values.float(), 37)
    on_cpu.encode_sparse(indices, values.float())
    assert torch.equal(on_gpu._cells.cpu(), on_cpu.table)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("size", SIZES)
def test_encoding_equals_the_cpu_to_rounding(size, number):
    on_gpu, on_cpu = both(format_for(size))
    values = normals(size).to(number)
    on_gpu.encode(values.cuda(), 37)
    on_cpu.encode(values.float(), 37)
    torch.testing.assert_close(on_gpu._cells.cpu(), on_cpu.table, rtol=1e-4, atol=1e-4)


def test_selections_differ_from_the_cpu_within_rounding():
    values = nearly_tied(1_000_000)
    on_gpu, on_cpu = both(format_for(1_000_000))
    on_gpu.encode(torch.from_numpy(values).cuda())
    on_cpu.encode(torch.from_numpy(values))
    tables = on_gpu._cells.cpu().numpy(), on_cpu.table.numpy()
    chosen = on_gpu.heavy_coordinates(10_000).cpu().numpy()
    assert differ_within_rounding(chosen, *tables, 9, 1_000_100)


def test_the_same_selection_in_every_run_and_on_the_cpu(deterministic):
    values = torch.from_numpy(nearly_tied(1_000_000))
    chosen = []
    for _ in range(3):
        on_gpu, on_cpu = both(format_for(1_000_000))
        on_gpu.encode(values.cuda())
        on_cpu.encode(values)
        assert torch.equal(on_gpu._cells.cpu(), on_cpu.table)
        chosen += [on_gpu.heavy_coordinates(10_000).cpu(), on_cpu.heavy_coordinates(10_000)]
    assert all(torch.equal(one, chosen[0]) for one in chosen)


@pytest.mark.parametrize("rows", range(1, 16, 2))
@pytest.mark.parametrize("size", SIZES)
def test_reading_a_table_equals_the_cpu(size, rows):
    sketch_format = format_for(size, rows)
    on_cpu = CountSketch(sketch_format, torch.zeros(sketch_format.table_shape))
    on_cpu.encode(normals(size).round(decimals=1))
    on_gpu = cuda.CudaSketch(sketch_format, on_cpu.table.cuda())
    for k in {1, max(1, size // 100), size}:
        for found, expected in zip(on_gpu.heavy_hitters(k), on_cpu.heavy_hitters(k), strict=True):
            assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("size", SIZES)
def test_functions_equal_the_cpu(size):
    values = normals(size)
    for k in {1, max(1, size // 100), size}:
        assert torch.equal(cuda.top_k(values.cuda(), k).cpu(), select.top_k(values, k))
    out, expected = torch.empty(size, device="cuda"), torch.empty(size)
    options = {"momentum_factor": 0.9, "nesterov": True, "scale": 0.3}
    finite = cuda.compensate(out, values.cuda(), values.cuda(), momentum=values.cuda(), **options)
    select.compensate(expected, values, values, momentum=values, **options)
    assert finite.item() == 1
    assert torch.equal(out.cpu(), expected)
    for number in NUMBERS[1:]:
        narrow = torch.empty(size, dtype=number, device="cuda")
        cuda.cast(narrow, values.cuda(), torch.tensor(3.0, device="cuda"))
        assert torch.equal(narrow.cpu(), (3 * values).to(number))


def test_operators_take_cuda_tensors():
    values = normals(5000).cuda()
    table = torch.zeros(3, 512, device="cuda")
    torch.ops.gsdist.count_sketch_encode_(table, values, 0, 1, 5000)
    indices, estimates = torch.ops.gsdist.count_sketch_heavy_hitters(table, 9, 1, 5000)
    found = torch.ops.gsdist.count_sketch_estimate(table, indices, 1, 5000)
    assert torch.equal(found, estimates)
    torch.library.opcheck(torch.ops.gsdist.top_k.default, (values, 20))


def test_a_graph_captures_a_whole_step():
    sketch_format = format_for(100_000)
    values, table = normals(100_000).cuda(), torch.zeros(sketch_format.table_shape, device="cuda")
    sketch = cuda.CudaSketch(sketch_format, table)

    def step():
        table.zero_()
        sketch.encode(values)
        return sketch.heavy_coordinates(50)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chosen = step()
    values.copy_(normals(100_000, seed=4))
    graph.replay()
    on_cpu = CountSketch(sketch_format, table.cpu())
    assert torch.equal(chosen.cpu(), on_cpu.heavy_coordinates(50))


def test_cupy_arrays_in_cupy_arrays_out():
    cupy = pytest.importorskip("cupy")
    sketch_format = format_for(10_000)
    values = normals(10_000)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        table = cupy.zeros(sketch_format.table_shape, cupy.float32)
        sketch = cuda.CudaSketch(sketch_format, table)
        sketch.encode(cupy.asarray(values.numpy()))
        indices = sketch.heavy_coordinates(20)
        stream.synchronize()
    assert isinstance(indices, cupy.ndarray)
    on_cpu = CountSketch(sketch_format, cupy.asnumpy(table))
    assert on_cpu.heavy_coordinates(20).tolist() == indices.tolist()
