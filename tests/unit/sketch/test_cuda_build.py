"""The kernels compile, by nvcc without a warning and by NVRTC without any header; needs no GPU."""

import ctypes
import ctypes.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks.kernels.device import PROBE
from gsdist.errors import DeviceError
from gsdist.sketch.cuda_launch import NVRTC_OPTIONS, kernel_source

ROOT = Path(__file__).parents[3]
KERNELS = (ROOT / "csrc" / "cuda" / "kernels.cuh").read_text()


def in_wheels(pattern):
    """Return what torch's wheels, or those beside them, bring of CUDA."""
    return sorted(map(str, (Path(torch.__file__).parents[1] / "nvidia").glob(pattern)))


@pytest.mark.timeout(300)
def test_nvcc_compiles_without_warnings(tmp_path):
    """By the nvcc of the development extra, which knows all these GPUs; one on the path may be older."""
    found = [*in_wheels("*/bin/nvcc"), shutil.which("nvcc")]
    nvcc = next(filter(None, found), None)
    if nvcc is None:
        pytest.skip("there is no nvcc; on Linux `pip install 'gsdist[dev]'` brings one")
    codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in (80, 90, 100)]
    codes.append("-gencode=arch=compute_100,code=compute_100")
    command = [nvcc, "-std=c++17", "--fmad=false", "-Werror=all-warnings", "--threads=2", *codes]
    source = str(ROOT / "csrc" / "cuda" / "launch.cu")
    done = subprocess.run(
        [*command, "-c", source, "-o", str(tmp_path / "launch.o")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def load_nvrtc():
    """Load NVRTC from torch's wheels or the system, or skip."""
    found = in_wheels("*/lib/libnvrtc.so.*")
    if not found and (name := ctypes.util.find_library("nvrtc")):
        found = [name]
    if not found:
        pytest.skip("there is no libnvrtc")
    return ctypes.CDLL(found[0])


def source_or_skip():
    try:
        return kernel_source()
    except DeviceError as error:
        pytest.skip(str(error))


def compile_by_nvrtc(architecture, more=""):
    """Return the status, the log and the PTX of what NVRTC makes of the kernels, and of more."""
    nvrtc, program = load_nvrtc(), ctypes.c_void_p()
    source = (source_or_skip() + more).encode()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"kernels", 0, None, None) == 0
    options = [option.encode() for option in (*NVRTC_OPTIONS, f"--gpu-architecture={architecture}")]
    status = nvrtc.nvrtcCompileProgram(
        program, len(options), (ctypes.c_char_p * len(options))(*options)
    )
    texts = []
    for what in ("ProgramLog", "PTX"):
        size = ctypes.c_size_t()
        getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(max(size.value, 1))
        getattr(nvrtc, f"nvrtcGet{what}")(program, text)
        texts.append(text.value.decode())
    return status, *texts


def test_nvrtc_compiles_all_kernels_without_headers():
    status, log, ptx = compile_by_nvrtc("sm_90")  # down to machine code, as CuPy does
    assert status == 0, log
    assert log.strip() == ""
    entries = set(re.findall(r"\.entry gsdist_(\w+)", ptx))
    assert len(entries) == 43
    assert {"encode_dense_bfloat16", "find_estimates", "compensate_float16"} <= entries
    assert "red.global.add.v4.f32" in ptx
    assert "fma." not in ptx, "a fused multiply-add rounds once where the CPU rounds twice"


def test_the_probe_of_the_benchmark_compiles():
    status, log, ptx = compile_by_nvrtc("compute_90", PROBE)
    assert status == 0, log
    probe = ptx[ptx.index(".entry reduce_at_random") :]
    assert probe.count("red.global.add.v4.f32") == 1


def test_gpus_before_sm_90_add_cell_by_cell():
    status, log, ptx = compile_by_nvrtc("compute_80")
    assert status == 0, log
    assert "add.v4.f32" not in ptx


def test_the_written_source_is_that_of_csrc():
    """An outdated file would give NVRTC other kernels than nvcc; rebuild the extension."""
    source = source_or_skip()
    assert '#include "' not in source
    assert KERNELS[KERNELS.index("#define") :] in source
