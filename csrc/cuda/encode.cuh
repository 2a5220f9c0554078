// Adding values to a table.
//
// A block of 64 coordinates is the work of 16 threads, four lanes each: they share a cache line
// pair in the table as in the vector. The plain kernels add with atomics, so the last bits of a sum
// depend on the order in which the GPU runs the threads. The ordered ones go through the values of
// every cell in ascending order, as the CPU does, and give its bits; who calls them sorts first.
#pragma once

#include "grid.cuh"
#include "numbers.cuh"

namespace gsdist {

constexpr uint32_t kQuad = 4;
constexpr uint32_t kQuads = kBlock / kQuad;  // in a block

// Four neighbouring lanes of a block. Bit j of `held`: v[j] is a value of the vector.
struct Quad {
  float v[kQuad];
  uint32_t held;
};

// Values of the coordinates begin..end-1.
template <class Number>
struct Slice {
  const Number* values;
  uint64_t begin;
  uint64_t end;
};

template <class Number>
struct alignas(kQuad * sizeof(Number)) Packed {
  Number v[kQuad];
};

// The coordinates first..first+3. Whole and aligned quads are one load.
template <class Number>
__device__ __forceinline__ Quad read_quad(const Slice<Number>& slice, uint64_t first) {
  Quad quad = {{0.0f, 0.0f, 0.0f, 0.0f}, 0};
  const Number* const from = slice.values + static_cast<int64_t>(first - slice.begin);
  if (first >= slice.begin && first + kQuad <= slice.end &&
      reinterpret_cast<uint64_t>(from) % sizeof(Packed<Number>) == 0) {
    const Packed<Number> packed = *reinterpret_cast<const Packed<Number>*>(from);
    for (uint32_t j = 0; j < kQuad; ++j) quad.v[j] = widen(packed.v[j]);
    quad.held = 15;
    return quad;
  }
  for (uint32_t j = 0; j < kQuad; ++j) {
    if (first + j < slice.begin || first + j >= slice.end) continue;
    quad.v[j] = widen(from[j]);
    quad.held |= 1u << j;
  }
  return quad;
}

template <class T>
__device__ __forceinline__ void swap_values(T& a, T& b) {
  const T before = a;
  a = b;
  b = before;
}

// The quad with the signs of its lanes (the four lowest bits), in the order of its cells.
__device__ __forceinline__ Quad placed(Quad quad, uint64_t signs, uint64_t xor_lane) {
  for (uint32_t j = 0; j < kQuad; ++j) {
    const uint32_t sign = static_cast<uint32_t>(signs >> j) << 31;
    quad.v[j] = from_bits(to_bits(quad.v[j]) ^ static_cast<int32_t>(sign));
  }
  if (xor_lane & 1) {
    swap_values(quad.v[0], quad.v[1]);
    swap_values(quad.v[2], quad.v[3]);
    quad.held = (quad.held & 5) << 1 | (quad.held & 10) >> 1;
  }
  if (xor_lane & 2) {
    swap_values(quad.v[0], quad.v[2]);
    swap_values(quad.v[1], quad.v[3]);
    quad.held = (quad.held & 3) << 2 | quad.held >> 2;
  }
  return quad;
}

// Adds four values to neighbouring cells: from sm_90 on one reduction of 16 bytes.
__device__ __forceinline__ void add_quad(float* cells, const Quad& quad) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (quad.held == 15) {
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(
                     __cvta_generic_to_global(cells)),
                 "f"(quad.v[0]), "f"(quad.v[1]), "f"(quad.v[2]), "f"(quad.v[3])
                 : "memory");
    return;
  }
#endif
  for (uint32_t j = 0; j < kQuad; ++j) {
    if (quad.held >> j & 1) atomicAdd(cells + j, quad.v[j]);
  }
}

// One thread per quad; `rows` x `columns` cells at an address divisible by 16.
template <class Number>
__device__ __forceinline__ void encode_dense(float* cells, uint64_t rows, uint64_t columns,
                                             uint64_t seed, const Number* values, uint64_t offset,
                                             uint64_t count) {
  const Table table = shared_table(cells, rows, columns, seed);
  const uint64_t first = (offset / kQuad + global_thread()) * kQuad;
  if (first >= offset + count) return;
  const Quad quad = read_quad<Number>({values, offset, offset + count}, first);
  const uint64_t lane = first % kBlock;
  for (int q = 0; q < table.rows; ++q) {
    const Target target = locate(table.keys[q], first / kBlock, table.blocks);
    const uint64_t lane_there = lane ^ (target.xor_lane & ~3ULL);
    add_quad(row_cells(table, q) + target.bucket * kBlock + lane_there,
             placed(quad, target.signs >> lane, target.xor_lane));
  }
}

// Writes for row q and block first_block + b the bucket block, at q * blocks + b.
GSDIST_KERNEL(locate_blocks)
(int64_t* buckets, uint64_t rows, uint64_t columns, uint64_t seed, uint64_t first_block,
 uint64_t blocks) {
  const Table table = shared_table(nullptr, rows, columns, seed);
  const uint64_t b = global_thread();
  if (b >= blocks) return;
  for (int q = 0; q < table.rows; ++q) {
    const Target target = locate(table.keys[q], first_block + b, table.blocks);
    buckets[static_cast<uint64_t>(q) * blocks + b] = static_cast<int64_t>(target.bucket);
  }
}

// 16 threads per bucket block of every row. Bucket block i of the table, counted through all rows,
// takes the blocks offset / 64 + order[starts[i]..starts[i + 1]-1], which must ascend.
template <class Number>
__device__ __forceinline__ void encode_dense_ordered(float* cells, uint64_t rows, uint64_t columns,
                                                     uint64_t seed, const Number* values,
                                                     uint64_t offset, uint64_t count,
                                                     const int32_t* order, const int64_t* starts) {
  const Table table = shared_table(cells, rows, columns, seed);
  const uint64_t bucket = global_thread() / kQuads;
  if (bucket >= rows * table.blocks) return;
  const uint64_t lane_there = global_thread() % kQuads * kQuad;
  const uint64_t key = table.keys[bucket / table.blocks];
  const Slice<Number> slice = {values, offset, offset + count};
  Packed<float>& there = *reinterpret_cast<Packed<float>*>(cells + bucket * kBlock + lane_there);
  Packed<float> sum = there;
  for (int64_t i = starts[bucket]; i < starts[bucket + 1]; ++i) {
    const uint64_t block = offset / kBlock + static_cast<uint64_t>(order[i]);
    const Target target = locate(key, block, table.blocks);
    const uint64_t lane = lane_there ^ (target.xor_lane & ~3ULL);
    const Quad quad = placed(read_quad(slice, block * kBlock + lane), target.signs >> lane,
                             target.xor_lane);
    for (uint32_t j = 0; j < kQuad; ++j) {
      if (quad.held >> j & 1) sum.v[j] += quad.v[j];
    }
  }
  there = sum;
}

// The cell of one coordinate, counted through all rows, and its value with the sign.
struct Entry {
  uint64_t cell;
  float value;
};

__device__ __forceinline__ Entry locate_entry(const Table& table, int row, int64_t index,
                                              float value) {
  const uint64_t block = static_cast<uint64_t>(index) / kBlock;
  const uint64_t lane = static_cast<uint64_t>(index) % kBlock;
  const Target target = locate(table.keys[row], block, table.blocks);
  const uint64_t bucket = static_cast<uint64_t>(row) * table.blocks + target.bucket;
  const uint32_t sign = static_cast<uint32_t>(target.signs >> lane) << 31;
  return {bucket * kBlock + (lane ^ target.xor_lane),
          from_bits(to_bits(value) ^ static_cast<int32_t>(sign))};
}

// One thread per entry.
template <class Number>
__device__ __forceinline__ void encode_sparse(float* cells, uint64_t rows, uint64_t columns,
                                              uint64_t seed, const int64_t* indices,
                                              const Number* values, uint64_t count) {
  const Table table = shared_table(cells, rows, columns, seed);
  const uint64_t i = global_thread();
  if (i >= count) return;
  for (int q = 0; q < table.rows; ++q) {
    const Entry entry = locate_entry(table, q, indices[i], widen(values[i]));
    atomicAdd(cells + entry.cell, entry.value);
  }
}

// Writes the cell and the signed value of entry i in row q at q * count + i.
template <class Number>
__device__ __forceinline__ void locate_entries(int64_t* entry_cells, float* signed_values,
                                               uint64_t rows, uint64_t columns, uint64_t seed,
                                               const int64_t* indices, const Number* values,
                                               uint64_t count) {
  const Table table = shared_table(nullptr, rows, columns, seed);
  const uint64_t i = global_thread();
  if (i >= count) return;
  for (int q = 0; q < table.rows; ++q) {
    const Entry entry = locate_entry(table, q, indices[i], widen(values[i]));
    const uint64_t place = static_cast<uint64_t>(q) * count + i;
    entry_cells[place] = static_cast<int64_t>(entry.cell);
    signed_values[place] = entry.value;
  }
}

// One thread per sorted entry; the first one of a cell adds them all. order[i] is the place of the
// i-th sorted cell among the signed values.
GSDIST_KERNEL(encode_sparse_ordered)
(float* cells, const int64_t* sorted_cells, const int64_t* order, const float* signed_values,
 uint64_t count) {
  const uint64_t first = global_thread();
  if (first >= count) return;
  const int64_t cell = sorted_cells[first];
  if (first > 0 && sorted_cells[first - 1] == cell) return;
  float sum = cells[cell];
  for (uint64_t i = first; i < count && sorted_cells[i] == cell; ++i) {
    sum += signed_values[order[i]];
  }
  cells[cell] = sum;
}

#define GSDIST_ENCODE_KERNELS(Number, name)                                                      \
  GSDIST_KERNEL(encode_dense_##name)                                                             \
  (float* cells, uint64_t rows, uint64_t columns, uint64_t seed, const Number* values,           \
   uint64_t offset, uint64_t count) {                                                            \
    encode_dense(cells, rows, columns, seed, values, offset, count);                             \
  }                                                                                              \
  GSDIST_KERNEL(encode_dense_ordered_##name)                                                     \
  (float* cells, uint64_t rows, uint64_t columns, uint64_t seed, const Number* values,           \
   uint64_t offset, uint64_t count, const int32_t* order, const int64_t* starts) {               \
    encode_dense_ordered(cells, rows, columns, seed, values, offset, count, order, starts);      \
  }                                                                                              \
  GSDIST_KERNEL(encode_sparse_##name)                                                            \
  (float* cells, uint64_t rows, uint64_t columns, uint64_t seed, const int64_t* indices,         \
   const Number* values, uint64_t count) {                                                       \
    encode_sparse(cells, rows, columns, seed, indices, values, count);                           \
  }                                                                                              \
  GSDIST_KERNEL(locate_entries_##name)                                                           \
  (int64_t* entry_cells, float* signed_values, uint64_t rows, uint64_t columns, uint64_t seed,   \
   const int64_t* indices, const Number* values, uint64_t count) {                               \
    locate_entries(entry_cells, signed_values, rows, columns, seed, indices, values, count);     \
  }

GSDIST_FOR_NUMBERS(GSDIST_ENCODE_KERNELS)
#undef GSDIST_ENCODE_KERNELS

}  // namespace gsdist
