// Kernels that touch every number of a vector once: error feedback, casts, scatter.
#pragma once

#include "../momentum.h"
#include "grid.cuh"
#include "numbers.cuh"

namespace gsdist {

// compensate() of select.h. Sets `finite` to 0 where out is not, and leaves it otherwise.
template <class Number>
__device__ __forceinline__ void compensate(float* out, uint32_t* finite, const float* residual,
                                           const float* momentum, const Number* gradient,
                                           float scale, float momentum_factor, uint64_t nesterov,
                                           uint64_t count) {
  bool good = true;
  for (uint64_t i = global_thread(); i < count; i += all_threads()) {
    const float scaled = scale * widen(gradient[i]);
    const float update =
        momentum ? momentum_update(scaled, momentum[i], momentum_factor, nesterov != 0) : scaled;
    const float value = (residual ? residual[i] : 0.0f) + update;
    out[i] = value;
    good = good && is_finite(value);
  }
  if (!good) *finite = 0;
}

template <class Number>
__device__ __forceinline__ void cast_to(Number* out, const float* values, const float* scale,
                                        uint64_t count) {
  const uint64_t i = global_thread();
  if (i < count) out[i] = narrow<Number>(*scale * values[i]);
}

template <class Number>
__device__ __forceinline__ void cast_from(float* out, const Number* values, const float* scale,
                                          uint64_t count) {
  const uint64_t i = global_thread();
  if (i < count) out[i] = *scale * widen(values[i]);
}

// out[indices[i]] = scale * values[i]; indices outside of 0..size-1 are left out.
template <class Number>
__device__ __forceinline__ void scatter(Number* out, uint64_t size, const int64_t* indices,
                                        const float* values, float scale, uint64_t count) {
  const uint64_t i = global_thread();
  if (i >= count || static_cast<uint64_t>(indices[i]) >= size) return;
  out[indices[i]] = narrow<Number>(scale * values[i]);
}

#define GSDIST_ELEMENTWISE_KERNELS(Number, name)                                                 \
  GSDIST_KERNEL(compensate_##name)                                                               \
  (float* out, uint32_t* finite, const float* residual, const float* momentum,                   \
   const Number* gradient, float scale, float momentum_factor, uint64_t nesterov,                \
   uint64_t count) {                                                                             \
    compensate(out, finite, residual, momentum, gradient, scale, momentum_factor, nesterov,      \
               count);                                                                           \
  }                                                                                              \
  GSDIST_KERNEL(scatter_##name)                                                                  \
  (Number* out, uint64_t size, const int64_t* indices, const float* values, float scale,         \
   uint64_t count) {                                                                             \
    scatter(out, size, indices, values, scale, count);                                           \
  }

GSDIST_FOR_NUMBERS(GSDIST_ELEMENTWISE_KERNELS)
#undef GSDIST_ELEMENTWISE_KERNELS

#define GSDIST_CAST_KERNELS(Number, name)                                                        \
  GSDIST_KERNEL(cast_to_##name)                                                                  \
  (Number* out, const float* values, const float* scale, uint64_t count) {                       \
    cast_to(out, values, scale, count);                                                          \
  }                                                                                              \
  GSDIST_KERNEL(cast_from_##name)                                                                \
  (float* out, const Number* values, const float* scale, uint64_t count) {                       \
    cast_from(out, values, scale, count);                                                        \
  }

GSDIST_CAST_KERNELS(Float16, float16)
GSDIST_CAST_KERNELS(BFloat16, bfloat16)
#undef GSDIST_CAST_KERNELS

}  // namespace gsdist
