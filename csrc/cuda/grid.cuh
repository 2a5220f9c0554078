// What all kernels share: the shape of a thread block, sums over it, and the table as they see it.
#pragma once

#include "../table.h"

namespace gsdist {

constexpr uint32_t kThreads = 256;  // of every thread block
constexpr uint32_t kWarp = 32;
constexpr uint32_t kAllLanes = 0xFFFFFFFF;

// The name under which the host, and a profiler, finds a kernel.
#define GSDIST_KERNEL(name) extern "C" __global__ void __launch_bounds__(kThreads) gsdist_##name

__device__ __forceinline__ uint64_t global_thread() {
  return static_cast<uint64_t>(blockIdx.x) * kThreads + threadIdx.x;
}

__device__ __forceinline__ uint64_t all_threads() {
  return static_cast<uint64_t>(gridDim.x) * kThreads;
}

// The table with its row keys in shared memory. All threads of the block must call it.
__device__ __forceinline__ Table shared_table(const float* cells, uint64_t rows, uint64_t columns,
                                              uint64_t seed) {
  __shared__ uint64_t keys[kMaxRows];
  if (threadIdx.x < rows) keys[threadIdx.x] = row_key(seed, static_cast<int>(threadIdx.x));
  __syncthreads();
  return {const_cast<float*>(cells), static_cast<int>(rows), columns / kBlock, keys};
}

// Adds up `value` over the threads of lower number; `total` becomes the sum over all. All threads of
// the block must call it.
__device__ inline uint64_t sum_before(uint64_t value, uint64_t& total) {
  __shared__ uint64_t sums[kThreads];
  const uint32_t t = threadIdx.x;
  __syncthreads();  // an earlier call may still be reading
  sums[t] = value;
  for (uint32_t distance = 1; distance < kThreads; distance *= 2) {
    __syncthreads();
    const uint64_t left = t >= distance ? sums[t - distance] : 0;
    __syncthreads();
    sums[t] += left;
  }
  __syncthreads();
  total = sums[kThreads - 1];
  return sums[t] - value;
}

__device__ __forceinline__ void add_atomically(uint64_t* to, uint64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value));
}

}  // namespace gsdist
