// Operations on a Count-Sketch table (format version 1, see hash.h).
//
// A table is float32, row-major, `rows` x `columns`. Nothing here checks its arguments: the caller
// guarantees odd rows in 1..15, columns a positive multiple of 64 with columns / 64 < 2^32,
// dimension and indices below 2^40. Results do not depend on the SIMD level or on `threads`.
#pragma once

#include <cstdint>

#include "hash.h"
#include "kernels.h"

namespace gsdist {

struct Sketch {
  Sketch(float* cells, int rows, uint64_t columns, uint64_t seed);
  Sketch(const Sketch&) = delete;  // table points into keys
  Sketch& operator=(const Sketch&) = delete;

  uint64_t keys[kMaxRows];
  Table table;
};

// Adds values[i] at coordinate offset + i. Threads share out the rows.
void encode_dense(const Sketch& sketch, const float* values, uint64_t offset, uint64_t count,
                  int threads);

// Adds values[i] at coordinate indices[i], in the order given.
void encode_sparse(const Sketch& sketch, const int64_t* indices, const float* values,
                   uint64_t count, int threads);

// out[i] = median over the rows of sign * cell for coordinate indices[i].
void estimate(const Sketch& sketch, const int64_t* indices, float* out, uint64_t count,
              int threads);

// The k coordinates below `dimension` of largest |estimate|, ties to the lowest index, ascending.
void heavy_hitters(const Sketch& sketch, uint64_t dimension, uint64_t k, int64_t* out_indices,
                   int threads);

}  // namespace gsdist
