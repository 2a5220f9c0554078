// A sketch table in memory, and where a block of coordinates goes in it.
#pragma once

#include "hash.h"
#include "portable.h"

namespace gsdist {

// A sketch table as the kernels see it: row q starts at cells + q * blocks * 64.
struct Table {
  float* cells;
  int rows;
  uint64_t blocks;       // bucket blocks in a row
  const uint64_t* keys;  // row_key of each row
};

// One bit for every cell of a bucket block. Aligned, so that a GPU reads it at once.
struct alignas(16) CellMasks {
  uint64_t positive;  // cell >= threshold
  uint64_t negative;  // cell <= -threshold
};

GSDIST_INLINE float* row_cells(const Table& table, int row) {
  return table.cells + static_cast<uint64_t>(row) * table.blocks * kBlock;
}

// Where one block goes in one row.
struct Target {
  uint64_t signs;
  uint64_t xor_lane;
  uint64_t bucket;
};

GSDIST_INLINE Target locate(uint64_t key, uint64_t block, uint64_t bucket_blocks) {
  const uint64_t signs = block_signs(key, block);
  const uint64_t position = block_position(signs);
  return {signs, lane_xor(position), bucket_block(position, bucket_blocks)};
}

// Bits of the cell that lane `lane` of the target's block enters, with the lane's sign.
GSDIST_INLINE int32_t signed_cell(const float* row, const Target& target, uint64_t lane) {
  const float cell = row[target.bucket * kBlock + (lane ^ target.xor_lane)];
  return to_bits(cell) ^ static_cast<int32_t>(static_cast<uint32_t>(target.signs >> lane) << 31);
}

}  // namespace gsdist
