// The inner loops, one set per SIMD level. kernels.cpp is compiled once per level and exports one
// Kernels table each time; dispatch.cpp picks one at run time.
//
// Every function gives the same bits at every level. None allocates, none starts threads, and all
// are leaf code on raw pointers: a translation unit built with -mavx512f must not emit a shared
// inline function (std::vector and the like) that the linker could then give to everybody.
#pragma once

#include <cstdint>

#include "table.h"

namespace gsdist {

constexpr int kChunk = 64;  // blocks that find_blocks handles in one call

// Magnitudes and thresholds are the bits of |x|: as integers they order like the numbers.
struct Kernels {
  const char* name;

  // Adds `count` whole blocks of values, the first of which is block `first`, to some rows.
  void (*encode_blocks)(const Table& table, int row_begin, int row_end, uint64_t first,
                        const float* values, uint64_t count);

  // Adds single coordinates to one row.
  void (*encode_entries)(const Table& table, int row, const int64_t* indices, const float* values,
                         uint64_t count);

  // Median over the rows of sign * cell.
  void (*estimate)(const Table& table, const int64_t* indices, float* out, uint64_t count);

  // |estimate| of the lanes of one block whose bit is set in `lanes`; the others stay undefined.
  void (*block_magnitudes)(const Table& table, uint64_t block, uint64_t lanes, uint32_t* out);

  // Masks of all bucket blocks of the table. threshold >= 1.
  void (*mask_cells)(const Table& table, uint32_t threshold, CellMasks* out);

  // For each of `count` <= kChunk blocks the lanes with |estimate| >= the threshold of the masks.
  void (*find_blocks)(const Table& table, const CellMasks* masks, uint64_t first, int count,
                      uint64_t* lanes);

  // For each whole block of values the lanes with |value| >= threshold.
  void (*find_values)(const float* values, uint64_t blocks, uint32_t threshold, uint64_t* lanes);

  // out = residual + update, see compensate() in select.h.
  bool (*compensate)(float* out, const float* residual, const float* momentum,
                     const float* gradient, float scale, float momentum_factor, bool nesterov,
                     uint64_t count);
};

extern const Kernels kernels_portable;
#if defined(GSDIST_X86)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

}  // namespace gsdist
