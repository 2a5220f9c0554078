// The words of CUDA that the kernels use, for the host's compiler. Threads of a block are fibers
// that take turns, so plain memory serves as shared memory and plain additions as atomics.
#pragma once

#include <cstdint>

struct Dimension {
  uint32_t x;
};

extern Dimension threadIdx, blockIdx, gridDim;

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(threads)

void __syncthreads();
uint32_t __ballot_sync(uint32_t lanes, bool vote);

inline int __popcll(uint64_t word) { return __builtin_popcountll(word); }
inline int __ffsll(long long word) { return __builtin_ffsll(word); }

template <class T>
T atomicAdd(T* to, T value) {
  const T before = *to;
  *to = before + value;
  return before;
}
