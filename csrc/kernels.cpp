// The inner loops of the sketch, written once and compiled once per SIMD level (see kernels.h).
// Floats are compared as integers throughout, see median.h.

#include "kernels.h"

#include <cstring>

#include "hash.h"
#include "median.h"
#include "momentum.h"
#include "simd.h"
#include "votes.h"

#if !defined(GSDIST_LEVEL)
#define GSDIST_LEVEL portable
#endif
#define GSDIST_JOIN_(a, b) a##b
#define GSDIST_JOIN(a, b) GSDIST_JOIN_(a, b)
#define GSDIST_STRING_(a) #a
#define GSDIST_STRING(a) GSDIST_STRING_(a)

namespace gsdist {
namespace {

constexpr int kParts = kBlock / kLanes;  // vectors in a block

Ints load(const float* p) {
  Ints v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

void store(float* p, Ints v) { std::memcpy(p, &v, sizeof v); }

Words load_words(const uint64_t* p) {
  Words v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

void store_words(uint64_t* p, Words v) { std::memcpy(p, &v, sizeof v); }

Floats as_floats(Ints v) { return (Floats)v; }

// The same for `Count` blocks, kWords at a time.
template <int Count>
struct Targets {
  // Aligned: a vector stored across two cache lines costs twice.
  alignas(64) uint64_t signs[Count];
  alignas(64) uint64_t xor_lane[Count];
  alignas(64) uint64_t bucket[Count];

  // Blocks first, first + 1, ...
  void locate_run(const Table& table, int row, uint64_t first) {
    Words golden;
    for (int i = 0; i < kWords; ++i) golden[i] = kGolden * static_cast<uint64_t>(i);
    const uint64_t start = table.keys[row] + kGolden * first;
    for (int j = 0; j < Count; j += kWords) {
      put(table, j, mix64(golden + (start + kGolden * static_cast<uint64_t>(j))));
    }
  }

  // Blocks blocks[0], blocks[1], ...
  void locate_each(const Table& table, int row, const uint64_t* blocks) {
    for (int j = 0; j < Count; j += kWords) {
      put(table, j, block_signs(table.keys[row], load_words(blocks + j)));
    }
  }

 private:
  void put(const Table& table, int j, Words word) {
    const Words position = block_position(word);
    store_words(signs + j, word);
    store_words(xor_lane + j, lane_xor(position));
    store_words(bucket + j, multiply_low(position >> 32, Words{} + table.blocks) >> 32);
  }
};

constexpr int kLine = 16;  // floats in a cache line

template <int Lines>
void prefetch_lines(const float* p) {
  for (int line = 0; line < Lines; ++line) __builtin_prefetch(p + line * kLine, 1);
}

// Part p of the coordinates sits at this distance (in floats) in the bucket block.
uint64_t part_offset(uint64_t xor_lane, int p) {
  return (xor_lane & (kBlock - kLanes)) ^ static_cast<uint64_t>(p * kLanes);
}

// Part p of a bucket block brought to the order and signs of the coordinates.
Ints read_part(const float* cells, const uint64_t& signs, const uint64_t& xor_lane, int p) {
  const Ints moved = load(cells + part_offset(xor_lane, p));
  return negate_lanes(xor_lanes(moved, xor_lane), signs, p);
}

void add_block(float* cells, const float* values, const uint64_t& signs,
               const uint64_t& xor_lane) {
  for (int p = 0; p < kParts; ++p) {
    float* to = cells + part_offset(xor_lane, p);
    const Ints signed_values = negate_lanes(load(values + p * kLanes), signs, p);
    const Ints moved = xor_lanes(signed_values, xor_lane);
    store(to, (Ints)(as_floats(load(to)) + as_floats(moved)));
  }
}

constexpr int kStep = 16;  // blocks added to one row before the next row's turn
constexpr int kStepLines = kStep * kBlock / kLine;

// Adds kStep blocks to the cells of one row. Meanwhile the cells of the next turn and
// `ahead_lines` lines of values to come are prefetched, the latter `AtOnce` per block: a burst of
// prefetches would hold up the additions, and so does a line prefetched twice.
template <int AtOnce>
void add_step(float* cells, const Targets<kStep>& targets, const float* values,
              const float* next_cells, const Targets<kStep>& next_targets, const float* ahead,
              int ahead_lines) {
  for (int j = 0; j < kStep; ++j) {
    prefetch_lines<kBlock / kLine>(next_cells + next_targets.bucket[j] * kBlock);
    if (j * AtOnce < ahead_lines) prefetch_lines<AtOnce>(ahead + j * AtOnce * kLine);
    add_block(cells + targets.bucket[j] * kBlock, values + j * kBlock, targets.signs[j],
              targets.xor_lane[j]);
  }
}

// Every row adds a step of blocks in turn, so that the values stay in L1 from row to row. The
// table is in L3 or beyond: the targets of a step are computed one step ahead.
template <int AtOnce>
void encode_steps(const Table& table, int row_begin, int row_end, uint64_t first,
                  const float* values, uint64_t steps) {
  const int rows = row_end - row_begin;
  const int ahead_lines = (kStepLines + rows - 1) / rows;  // each row fetches its share
  Targets<kStep> buffers[2];
  buffers[0].locate_run(table, row_begin, first);
  int turn = 0;
  for (uint64_t step = 0; step < steps; ++step) {
    const float* const from = values + step * kStep * kBlock;
    for (int row = row_begin; row < row_end; ++row) {
      const bool last = row + 1 == row_end;
      const int next_row = last ? row_begin : row + 1;
      const Targets<kStep>& targets = buffers[turn];
      turn ^= 1;
      buffers[turn].locate_run(table, next_row, first + (step + last) * kStep);
      const float* const ahead = from + (kStepLines + (row - row_begin) * ahead_lines) * kLine;
      add_step<AtOnce>(row_cells(table, row), targets, from, row_cells(table, next_row),
                       buffers[turn], ahead, ahead_lines);
    }
  }
}

void encode_blocks(const Table& table, int row_begin, int row_end, uint64_t first,
                   const float* values, uint64_t count) {
  const uint64_t steps = count / kStep;
  switch (row_end - row_begin) {
    case 1: encode_steps<4>(table, row_begin, row_end, first, values, steps); break;
    case 2:
    case 3: encode_steps<2>(table, row_begin, row_end, first, values, steps); break;
    default: encode_steps<1>(table, row_begin, row_end, first, values, steps);
  }
  for (int row = row_begin; row < row_end; ++row) {
    for (uint64_t block = steps * kStep; block < count; ++block) {
      const Target target = locate(table.keys[row], first + block, table.blocks);
      add_block(row_cells(table, row) + target.bucket * kBlock, values + block * kBlock,
                target.signs, target.xor_lane);
    }
  }
}

// Coordinates given one by one, up to kChunk of them.
struct Entries {
  uint64_t blocks[kChunk];
  uint64_t lanes[kChunk];

  Entries(const int64_t* indices, int count) : blocks{} {
    for (int j = 0; j < count; ++j) {
      blocks[j] = static_cast<uint64_t>(indices[j]) / kBlock;
      lanes[j] = static_cast<uint64_t>(indices[j]) % kBlock;
    }
  }
};

// +0 or the sign bit, for entry j.
int32_t sign_of(const Targets<kChunk>& targets, const Entries& entries, int j) {
  return static_cast<int32_t>(static_cast<uint32_t>(targets.signs[j] >> entries.lanes[j]) << 31);
}

uint64_t cell_of(const Targets<kChunk>& targets, const Entries& entries, int j) {
  return targets.bucket[j] * kBlock + (entries.lanes[j] ^ targets.xor_lane[j]);
}

int chunk_size(uint64_t left) { return static_cast<int>(left < kChunk ? left : kChunk); }

void encode_entries(const Table& table, int row, const int64_t* indices, const float* values,
                    uint64_t count) {
  float* const cells = row_cells(table, row);
  Targets<kChunk> targets;
  for (uint64_t done = 0; done < count; done += kChunk) {
    const int n = chunk_size(count - done);
    const Entries entries(indices + done, n);
    targets.locate_each(table, row, entries.blocks);
    for (int j = 0; j < n; ++j) {
      const float signed_value =
          from_bits(to_bits(values[done + j]) ^ sign_of(targets, entries, j));
      cells[cell_of(targets, entries, j)] += signed_value;
    }
  }
}

template <int R>
void estimate_chunk(const Table& table, const Entries& entries, int count, float* out) {
  Targets<kChunk> targets;
  float cells[R][kChunk] = {};
  for (int q = 0; q < R; ++q) {
    const float* const row = row_cells(table, q);
    targets.locate_each(table, q, entries.blocks);
    for (int j = 0; j < count; ++j) {
      const int32_t bits = to_bits(row[cell_of(targets, entries, j)]);
      cells[q][j] = from_bits(bits ^ sign_of(targets, entries, j));
    }
  }
  for (int j = 0; j < kChunk; j += kLanes) {
    Ints v[R];
    for (int q = 0; q < R; ++q) v[q] = ordered(load(cells[q] + j));
    store(cells[0] + j, ordered(median<R>(v)));
  }
  std::memcpy(out, cells[0], static_cast<uint64_t>(count) * sizeof(float));
}

void estimate(const Table& table, const int64_t* indices, float* out, uint64_t count) {
  with_rows(table.rows, [&](auto rows) {
    for (uint64_t done = 0; done < count; done += kChunk) {
      const int n = chunk_size(count - done);
      estimate_chunk<decltype(rows)::value>(table, Entries(indices + done, n), n, out + done);
    }
  });
}

constexpr int kFewLanes = 8;  // up to here lanes are estimated one by one

template <int R>
void all_magnitudes(const Table& table, const Target* targets, uint32_t* out) {
  for (int p = 0; p < kParts; ++p) {
    Ints v[R];
    for (int q = 0; q < R; ++q) {
      v[q] = ordered(read_part(row_cells(table, q) + targets[q].bucket * kBlock, targets[q].signs,
                               targets[q].xor_lane, p));
    }
    const Ints magnitude = ordered(median<R>(v)) & 0x7FFFFFFF;
    std::memcpy(out + p * kLanes, &magnitude, sizeof magnitude);
  }
}

void block_magnitudes(const Table& table, uint64_t block, uint64_t lanes, uint32_t* out) {
  with_rows(table.rows, [&](auto rows) {
    constexpr int R = decltype(rows)::value;
    Target targets[R];
    for (int q = 0; q < R; ++q) targets[q] = locate(table.keys[q], block, table.blocks);
    if (__builtin_popcountll(lanes) > kFewLanes) {
      all_magnitudes<R>(table, targets, out);
      return;
    }
    for (; lanes != 0; lanes &= lanes - 1) {
      const uint64_t lane = static_cast<uint64_t>(__builtin_ctzll(lanes));
      int32_t v[R];
      for (int q = 0; q < R; ++q) {
        v[q] = ordered(signed_cell(row_cells(table, q), targets[q], lane));
      }
      out[lane] = static_cast<uint32_t>(ordered(median<R>(v))) & 0x7FFFFFFF;
    }
  });
}

void mask_cells(const Table& table, uint32_t threshold, CellMasks* out) {
  const uint64_t blocks = static_cast<uint64_t>(table.rows) * table.blocks;
  for (uint64_t b = 0; b < blocks; ++b) {
    CellMasks masks = {0, 0};
    for (int p = 0; p < kParts; ++p) {
      const Ints bits = load(table.cells + b * kBlock + p * kLanes);
      masks.positive |= at_least(bits, static_cast<int32_t>(threshold)) << (p * kLanes);
      masks.negative |= at_least(bits ^ INT32_MIN, static_cast<int32_t>(threshold))
                        << (p * kLanes);
    }
    out[b] = masks;
  }
}

void find_blocks(const Table& table, const CellMasks* masks, uint64_t first, int count,
                 uint64_t* lanes) {
  Targets<kChunk> targets[kMaxRows];
  uint64_t positive[kMaxRows][kChunk];
  uint64_t negative[kMaxRows][kChunk];
  for (int q = 0; q < table.rows; ++q) {
    const CellMasks* row_masks = masks + static_cast<uint64_t>(q) * table.blocks;
    targets[q].locate_run(table, q, first);
    for (int j = 0; j < kChunk; ++j) {
      const CellMasks pair = row_masks[targets[q].bucket[j]];
      positive[q][j] = pair.positive;
      negative[q][j] = pair.negative;
    }
  }
  uint64_t found[kChunk];
  for (int j = 0; j < kChunk; j += kWords) {
    Votes<Words> above(table.rows);
    Votes<Words> below(table.rows);
    for (int q = 0; q < table.rows; ++q) {
      const BitPermutation<Words> permute(load_words(targets[q].xor_lane + j));
      const Words up = xor_bytes(permute(load_words(positive[q] + j)), permute.bytes);
      const Words down = xor_bytes(permute(load_words(negative[q] + j)), permute.bytes);
      const Words flip = (up ^ down) & load_words(targets[q].signs + j);
      above.add(up ^ flip);
      below.add(down ^ flip);
    }
    const Words verdict = above.bit3 | below.bit3;
    std::memcpy(found + j, &verdict, sizeof verdict);
  }
  std::memcpy(lanes, found, static_cast<uint64_t>(count) * sizeof(uint64_t));
}

void find_values(const float* values, uint64_t blocks, uint32_t threshold, uint64_t* lanes) {
  for (uint64_t b = 0; b < blocks; ++b) {
    uint64_t found = 0;
    for (int p = 0; p < kParts; ++p) {
      const Ints magnitude = load(values + b * kBlock + p * kLanes) & 0x7FFFFFFF;
      found |= at_least(magnitude, static_cast<int32_t>(threshold)) << (p * kLanes);
    }
    lanes[b] = found;
  }
}

template <class Update>
bool add_update(float* __restrict out, const float* __restrict residual, uint64_t count,
                Update update) {
  int32_t bad = 0;
  for (uint64_t i = 0; i < count; ++i) {
    const float value = (residual ? residual[i] : 0.0f) + update(i);
    out[i] = value;
    bad |= !is_finite(value);
  }
  return bad == 0;
}

bool compensate(float* out, const float* residual, const float* momentum, const float* gradient,
                float scale, float momentum_factor, bool nesterov, uint64_t count) {
  if (momentum == nullptr) {
    return add_update(out, residual, count, [=](uint64_t i) { return scale * gradient[i]; });
  }
  if (!nesterov) {
    return add_update(out, residual, count, [=](uint64_t i) {
      return momentum_update(scale * gradient[i], momentum[i], momentum_factor, false);
    });
  }
  return add_update(out, residual, count, [=](uint64_t i) {
    return momentum_update(scale * gradient[i], momentum[i], momentum_factor, true);
  });
}

}  // namespace

extern const Kernels GSDIST_JOIN(kernels_, GSDIST_LEVEL) = {
    GSDIST_STRING(GSDIST_LEVEL), encode_blocks, encode_entries, estimate,   block_magnitudes,
    mask_cells,                  find_blocks,   find_values,    compensate,
};

}  // namespace gsdist
