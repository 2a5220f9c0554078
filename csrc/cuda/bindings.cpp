// The module gsdist._cuda: kernels by name, addresses and sizes as words.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "launch.h"

PYBIND11_MODULE(_cuda, m) {
  using pybind11::arg;
  m.doc() = "Count-Sketch kernels for NVIDIA GPUs (use gsdist.sketch instead: nothing is checked)";
  m.def("launch", &gsdist::launch, arg("kernel"), arg("thread_blocks"), arg("device"),
        arg("stream"), arg("words"), "Start a kernel in a stream.");
}
