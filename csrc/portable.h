// What code that runs on the CPU and on the GPU needs of the language: also NVRTC, which has no
// standard headers.
#pragma once

#if defined(__CUDACC_RTC__)
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#else
#include <cmath>
#include <cstdint>
#include <cstring>
#endif

#if defined(__CUDACC__)
#define GSDIST_MEMBER __host__ __device__ __forceinline__
#define GSDIST_INLINE static __host__ __device__ __forceinline__
#else
#define GSDIST_MEMBER inline
#define GSDIST_INLINE static inline
#endif

namespace gsdist {

GSDIST_INLINE int32_t to_bits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_int(value);
#else
  int32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

GSDIST_INLINE float from_bits(int32_t bits) {
#if defined(__CUDA_ARCH__)
  return __int_as_float(bits);
#else
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

}  // namespace gsdist
