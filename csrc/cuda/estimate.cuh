// Estimates: the median over the rows of sign * cell.
#pragma once

#include "../median.h"
#include "grid.cuh"

namespace gsdist {

// Writes the bits of the estimate of one coordinate. Not a lambda: NVRTC takes a generic one for
// host code.
struct EstimateOf {
  const Table& table;
  uint64_t index;
  int32_t& bits;

  template <int R>
  GSDIST_MEMBER void operator()(Rows<R>) const {
    int32_t v[R];
    for (int q = 0; q < R; ++q) {
      const Target target = locate(table.keys[q], index / kBlock, table.blocks);
      v[q] = ordered(signed_cell(row_cells(table, q), target, index % kBlock));
    }
    bits = ordered(median<R>(v));
  }
};

__device__ inline int32_t estimate_bits(const Table& table, uint64_t index) {
  int32_t bits = 0;
  with_rows(table.rows, EstimateOf{table, index, bits});
  return bits;
}

// One thread per index.
GSDIST_KERNEL(estimate)
(const float* cells, uint64_t rows, uint64_t columns, uint64_t seed, const int64_t* indices,
 float* out, uint64_t count) {
  const Table table = shared_table(cells, rows, columns, seed);
  const uint64_t i = global_thread();
  if (i < count) out[i] = from_bits(estimate_bits(table, static_cast<uint64_t>(indices[i])));
}

}  // namespace gsdist
