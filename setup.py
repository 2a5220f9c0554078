"""Build the extensions ``gsdist._native`` and ``gsdist._cuda``; the rest is in pyproject.toml.

``csrc/kernels.cpp`` is compiled once per SIMD level, each time with that level's flags; the rest
is compiled for the plain architecture and picks a level at run time.

``gsdist._cuda`` is built by nvcc, from ``$CUDA_HOME/bin`` or the path, where there is one; with
``GSDIST_CUDA=0`` it is left out. The kernels are also written to ``gsdist/_kernels.cu``, one file
that NVRTC can compile later.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pybind11
from pybind11.setup_helpers import Pybind11Extension
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

# Contraction off: a fused multiply-add on one SIMD level only would change results.
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra"]
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
SIMD_FLAGS = {"portable": []}
if IS_X86:
    SIMD_FLAGS["avx2"] = ["-mavx2"]
    SIMD_FLAGS["avx512"] = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]

# Each serves all GPUs of its generation; newer ones compile the last one's PTX.
GPU_ARCHITECTURES = ("80", "90", "100")
NVCC_FLAGS = ["-std=c++17", "-O3", "--fmad=false", "--threads=0", "-shared"]
NVCC_FLAGS += ["-Xcompiler=-fPIC,-fvisibility=hidden"]

SOURCES = ["bindings.cpp", "dispatch.cpp", "select.cpp", "sketch.cpp"]
CUDA_SOURCES = ["cuda/bindings.cpp", "cuda/launch.cu"]
# Named so that a change to them rebuilds the extensions.
DEPENDS = [str(path) for path in [*Path("csrc").rglob("*.*h"), Path("csrc/kernels.cpp")]]


def find_nvcc() -> str | None:
    """Return the path of nvcc, or None where GPU kernels are not to be built."""
    if os.environ.get("GSDIST_CUDA") == "0":
        return None
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=os.path.join(home, "bin") if home else None)


NVCC = find_nvcc()


def flatten(path: Path, seen: set[Path]) -> str:
    """Return a source with the project's own headers in place of their includes."""
    path = path.resolve()
    if path in seen:
        return ""
    seen.add(path)

    def insert(include: re.Match[str]) -> str:
        return flatten(path.parent / include[1], seen)

    text = path.read_text().replace("#pragma once\n", "")
    return re.sub(r'^#include "(.*)"\n', insert, text, flags=re.MULTILINE)


class BuildKernels(build_ext):
    """``build_ext`` with one object per SIMD level, and nvcc for the GPU's kernels."""

    def run(self) -> None:
        """Build the extensions and write the source for NVRTC beside them."""
        super().run()
        source = Path(self.get_ext_fullpath("gsdist._native")).with_name("_kernels.cu")
        source.write_text(flatten(Path("csrc/cuda/kernels.cuh"), set()))

    def build_extension(self, ext: Extension) -> None:
        """Build one extension."""
        if ext.name == "gsdist._cuda":
            self.build_with_nvcc(ext)
        else:
            self.build_per_level(ext)

    def build_per_level(self, ext: Extension) -> None:
        """Compile ``csrc/kernels.cpp`` per level and link the objects into ``ext``."""
        for level, flags in SIMD_FLAGS.items():
            ext.extra_objects += self.compiler.compile(
                ["csrc/kernels.cpp"],
                output_dir=os.path.join(self.build_temp, level),
                macros=[*ext.define_macros, ("GSDIST_LEVEL", level)],
                extra_postargs=[*ext.extra_compile_args, *flags],
                depends=ext.depends,
            )
        super().build_extension(ext)

    def build_with_nvcc(self, ext: Extension) -> None:
        """Compile and link ``ext`` by nvcc, which brings the CUDA runtime into it."""
        target = self.get_ext_fullpath(ext.name)
        if not (self.force or newer_group([*ext.sources, *ext.depends], target)):
            return
        os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
        known = subprocess.run([NVCC, "--list-gpu-code"], capture_output=True, text=True).stdout
        wanted = [a for a in GPU_ARCHITECTURES if f"sm_{a}" in known.split()]
        codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in wanted]
        codes.append(f"-gencode=arch=compute_{wanted[-1]},code=compute_{wanted[-1]}")
        includes = [f"-I{path}" for path in (pybind11.get_include(), sysconfig.get_path("include"))]
        command = [NVCC, *NVCC_FLAGS, *codes, *includes, *ext.sources, "-o", target]
        try:
            subprocess.run(command, check=True)
        except subprocess.CalledProcessError as error:
            raise SystemExit(
                "nvcc could not build the GPU kernels; set GSDIST_CUDA=0 to install without them"
            ) from error


def extensions() -> list[Extension]:
    """Return what is to be built here."""
    native = Pybind11Extension(
        "gsdist._native",
        [f"csrc/{name}" for name in SOURCES],
        depends=DEPENDS,
        define_macros=[("GSDIST_X86", "1")] if IS_X86 else [],
        extra_compile_args=FLAGS,
        extra_link_args=["-pthread"],
    )
    cuda = Extension("gsdist._cuda", [f"csrc/{name}" for name in CUDA_SOURCES], depends=DEPENDS)
    return [native, cuda] if NVCC else [native]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildKernels})
