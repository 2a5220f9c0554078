"""Build the extension ``gsdist._native``; everything else is in pyproject.toml.

``csrc/kernels.cpp`` is compiled once per SIMD level, each time with that level's flags; the rest
is compiled for the plain architecture and picks a level at run time.
"""

from __future__ import annotations

import os
import platform

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext

# Contraction off: a fused multiply-add on one SIMD level only would change results.
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra"]
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
SIMD_FLAGS = {"portable": []}
if IS_X86:
    SIMD_FLAGS["avx2"] = ["-mavx2"]
    SIMD_FLAGS["avx512"] = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]

SOURCES = ["bindings.cpp", "dispatch.cpp", "select.cpp", "sketch.cpp"]
# Named so that a change to them rebuilds the extension and source distributions contain them.
DEPENDS = [
    "dispatch.h",
    "hash.h",
    "kernels.cpp",
    "kernels.h",
    "parallel.h",
    "select.h",
    "simd.h",
    "sketch.h",
]


class BuildKernels(build_ext):
    """``build_ext`` that first compiles the kernels of every SIMD level."""

    def build_extension(self, ext: Pybind11Extension) -> None:
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


setup(
    ext_modules=[
        Pybind11Extension(
            "gsdist._native",
            [f"csrc/{name}" for name in SOURCES],
            depends=[f"csrc/{name}" for name in DEPENDS],
            define_macros=[("GSDIST_X86", "1")] if IS_X86 else [],
            extra_compile_args=FLAGS,
            extra_link_args=["-pthread"],
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)
