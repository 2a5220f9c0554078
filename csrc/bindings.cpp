// The module gsdist._native: addresses and sizes in, nothing about Python objects beyond.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "dispatch.h"
#include "select.h"
#include "sketch.h"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

py::dict build_info() {
  py::dict info;
  info["format_version"] = gsdist::kFormatVersion;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "gcc " __VERSION__;
#endif
  info["simd_levels"] = gsdist::simd_levels();
  info["simd_level"] = gsdist::kernels().name;
  return info;
}

void encode_dense(Address table, int rows, uint64_t columns, uint64_t seed, Address values,
                  uint64_t offset, uint64_t count, int threads) {
  gsdist::encode_dense({pointer<float>(table), rows, columns, seed}, pointer<const float>(values),
                       offset, count, threads);
}

void encode_sparse(Address table, int rows, uint64_t columns, uint64_t seed, Address indices,
                   Address values, uint64_t count, int threads) {
  gsdist::encode_sparse({pointer<float>(table), rows, columns, seed},
                        pointer<const int64_t>(indices), pointer<const float>(values), count,
                        threads);
}

void estimate(Address table, int rows, uint64_t columns, uint64_t seed, Address indices,
              Address out, uint64_t count, int threads) {
  gsdist::estimate({pointer<float>(table), rows, columns, seed}, pointer<const int64_t>(indices),
                   pointer<float>(out), count, threads);
}

void heavy_hitters(Address table, int rows, uint64_t columns, uint64_t seed, uint64_t dimension,
                   uint64_t k, Address out_indices, int threads) {
  gsdist::heavy_hitters({pointer<float>(table), rows, columns, seed}, dimension, k,
                        pointer<int64_t>(out_indices), threads);
}

void top_k(Address values, uint64_t count, uint64_t k, Address out_indices, int threads) {
  gsdist::top_k(pointer<const float>(values), count, k, pointer<int64_t>(out_indices), threads);
}

bool compensate(Address out, Address residual, Address momentum, Address gradient, float scale,
                float momentum_factor, bool nesterov, uint64_t count, int threads) {
  return gsdist::compensate(pointer<float>(out), pointer<const float>(residual),
                            pointer<const float>(momentum), pointer<const float>(gradient), scale,
                            momentum_factor, nesterov, count, threads);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  using py::arg;
  using Unlocked = py::call_guard<py::gil_scoped_release>;
  m.doc() =
      "Count-Sketch kernels on raw addresses (use gsdist.sketch instead: nothing is checked here)";

  m.def("build_info", &build_info, "Describe the build and the SIMD level in use.");
  m.def("use_simd_level", &gsdist::use_simd_level, arg("name"),
        "Switch the process to one of build_info()['simd_levels'].");
  m.def("encode_dense", &encode_dense, Unlocked(), arg("table"), arg("rows"), arg("columns"),
        arg("seed"), arg("values"), arg("offset"), arg("count"), arg("threads"),
        "Add a dense float32 slice that starts at coordinate `offset`.");
  m.def("encode_sparse", &encode_sparse, Unlocked(), arg("table"), arg("rows"), arg("columns"),
        arg("seed"), arg("indices"), arg("values"), arg("count"), arg("threads"),
        "Add float32 values at int64 coordinates.");
  m.def("estimate", &estimate, Unlocked(), arg("table"), arg("rows"), arg("columns"), arg("seed"),
        arg("indices"), arg("out"), arg("count"), arg("threads"),
        "Write the estimates of int64 coordinates to float32 `out`.");
  m.def("heavy_hitters", &heavy_hitters, Unlocked(), arg("table"), arg("rows"), arg("columns"),
        arg("seed"), arg("dimension"), arg("k"), arg("out_indices"), arg("threads"),
        "Write the k coordinates of largest |estimate|, ascending, ties to the lowest index.");
  m.def("top_k", &top_k, Unlocked(), arg("values"), arg("count"), arg("k"), arg("out_indices"),
        arg("threads"), "Write the indices of the k largest |values|, ascending.");
  m.def("compensate", &compensate, Unlocked(), arg("out"), arg("residual"), arg("momentum"),
        arg("gradient"), arg("scale"), arg("momentum_factor"), arg("nesterov"), arg("count"),
        arg("threads"), "Write residual + update to `out`; return whether all of it is finite.");
}
