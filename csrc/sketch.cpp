#include "sketch.h"

#include <algorithm>
#include <vector>

#include "dispatch.h"
#include "parallel.h"
#include "select.h"

namespace gsdist {

Sketch::Sketch(float* cells, int rows, uint64_t columns, uint64_t seed)
    : table{cells, rows, columns / kBlock, keys} {
  for (int q = 0; q < rows; ++q) keys[q] = row_key(seed, q);
}

namespace {

// Coordinates of a block that the slice covers only in part.
void encode_partial_block(const Sketch& sketch, int row, const float* values, uint64_t offset,
                          uint64_t count) {
  int64_t indices[kBlock];
  for (uint64_t i = 0; i < count; ++i) indices[i] = static_cast<int64_t>(offset + i);
  kernels().encode_entries(sketch.table, row, indices, values, count);
}

void encode_dense_rows(const Sketch& sketch, int row_begin, int row_end, const float* values,
                       uint64_t offset, uint64_t count) {
  const uint64_t head = std::min(count, (kBlock - offset % kBlock) % kBlock);
  const uint64_t blocks = (count - head) / kBlock;
  const uint64_t tail = (count - head) % kBlock;
  const uint64_t first = (offset + head) / kBlock;
  for (int q = row_begin; q < row_end; ++q) {
    encode_partial_block(sketch, q, values, offset, head);
  }
  kernels().encode_blocks(sketch.table, row_begin, row_end, first, values + head, blocks);
  for (int q = row_begin; q < row_end; ++q) {
    encode_partial_block(sketch, q, values + (count - tail), offset + count - tail, tail);
  }
}

}  // namespace

void encode_dense(const Sketch& sketch, const float* values, uint64_t offset, uint64_t count,
                  int threads) {
  parallel_ranges(static_cast<uint64_t>(sketch.table.rows), threads,
                  [&](int, uint64_t begin, uint64_t end) {
                    encode_dense_rows(sketch, static_cast<int>(begin), static_cast<int>(end),
                                      values, offset, count);
                  });
}

void encode_sparse(const Sketch& sketch, const int64_t* indices, const float* values,
                   uint64_t count, int threads) {
  parallel_ranges(static_cast<uint64_t>(sketch.table.rows), threads,
                  [&](int, uint64_t begin, uint64_t end) {
                    for (uint64_t q = begin; q < end; ++q) {
                      kernels().encode_entries(sketch.table, static_cast<int>(q), indices, values,
                                               count);
                    }
                  });
}

void estimate(const Sketch& sketch, const int64_t* indices, float* out, uint64_t count,
              int threads) {
  parallel_ranges(count, threads, [&](int, uint64_t begin, uint64_t end) {
    kernels().estimate(sketch.table, indices + begin, out + begin, end - begin);
  });
}

namespace {

// Estimates of all coordinates, without computing most of them. A median reaches a threshold
// exactly when a majority of the rows do, so the scan counts one bit per row and coordinate, and
// only what passes is estimated.
class EstimateSource final : public Source {
 public:
  EstimateSource(const Sketch& sketch, uint64_t dimension)
      : Source(dimension), sketch_(sketch) {}

  void magnitudes(uint64_t block, uint32_t* out) const override {
    kernels().block_magnitudes(sketch_.table, block, ~0ULL, out);
  }

  void set_threshold(uint32_t threshold) override {
    masks_.resize(static_cast<std::size_t>(sketch_.table.rows) * sketch_.table.blocks);
    kernels().mask_cells(sketch_.table, threshold, masks_.data());
  }

  void scan(uint64_t begin, uint64_t end, Candidates& candidates) const override {
    uint64_t lanes[kChunk];
    uint32_t magnitudes[kBlock];
    for (uint64_t first = begin; first < end; first += kChunk) {
      const int count = static_cast<int>(std::min<uint64_t>(kChunk, end - first));
      kernels().find_blocks(sketch_.table, masks_.data(), first, count, lanes);
      for (int j = 0; j < count; ++j) {
        const uint64_t block = first + static_cast<uint64_t>(j);
        const uint64_t found = lanes[j] & valid_lanes(block);
        if (found == 0) continue;
        kernels().block_magnitudes(sketch_.table, block, found, magnitudes);
        candidates.add_block(block, found, magnitudes);
      }
    }
  }

 private:
  const Sketch& sketch_;
  std::vector<CellMasks> masks_;
};

}  // namespace

void heavy_hitters(const Sketch& sketch, uint64_t dimension, uint64_t k, int64_t* out_indices,
                   int threads) {
  EstimateSource source(sketch, dimension);
  select_largest(source, k, out_indices, threads);
}

}  // namespace gsdist
