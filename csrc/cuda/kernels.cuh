// All kernels of the GPU. Compiled by nvcc (launch.cu), by NVRTC, and for the tests by the host's
// compiler: no header of CUDA or of the standard library is included on the way.
#pragma once

#include "elementwise.cuh"
#include "encode.cuh"
#include "estimate.cuh"
#include "select.cuh"

// Calls M(name) for every kernel.
#define GSDIST_FOR_KERNELS_OF_NUMBER(M, name) \
  M(encode_dense_##name)                      \
  M(encode_dense_ordered_##name)              \
  M(encode_sparse_##name)                     \
  M(locate_entries_##name)                    \
  M(compensate_##name)                        \
  M(scatter_##name)
#define GSDIST_FOR_KERNELS_OF_SOURCE(M, name) \
  M(sample_##name)                            \
  M(find_##name)                              \
  M(count_digits_of_##name)                   \
  M(count_chosen_##name)                      \
  M(write_chosen_##name)
#define GSDIST_FOR_KERNELS(M)               \
  GSDIST_FOR_KERNELS_OF_NUMBER(M, float32)  \
  GSDIST_FOR_KERNELS_OF_NUMBER(M, float16)  \
  GSDIST_FOR_KERNELS_OF_NUMBER(M, bfloat16) \
  GSDIST_FOR_KERNELS_OF_SOURCE(M, values)   \
  GSDIST_FOR_KERNELS_OF_SOURCE(M, estimates)\
  M(cast_to_float16)                        \
  M(cast_from_float16)                      \
  M(cast_to_bfloat16)                       \
  M(cast_from_bfloat16)                     \
  M(locate_blocks)                          \
  M(encode_sparse_ordered)                  \
  M(estimate)                               \
  M(begin_selection)                        \
  M(count_digits_of_sample)                 \
  M(pick_digit)                             \
  M(set_threshold)                          \
  M(lower_threshold)                        \
  M(begin_ranking)                          \
  M(mask_cells)                             \
  M(place_tiles)
