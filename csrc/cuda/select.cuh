// Exact selection of the k largest magnitudes, ties to the lowest index, ascending, without a word
// from the host in between.
//
// A sample gives a threshold that k magnitudes very likely reach. One scan marks what reaches it by
// one bit per coordinate; where that are too few, a second scan marks all but the zeros. Among the
// marked the smallest magnitude to choose is found digit by digit, from counts. Every count is an
// integer, so the result does not depend on the order of the threads. Magnitudes are the bits of
// |x|: as integers they order like the numbers.
//
// The kernels of one selection, in order:
//   begin_selection, sample, (count_digits_of_sample, pick_digit) twice, set_threshold,
//   (mask_cells and find_estimates, or find_values), lower_threshold, the same once more,
//   begin_ranking, (count_digits, pick_digit) three times, count_chosen, place_tiles, write_chosen
#pragma once

#include "../sample.h"
#include "../votes.h"
#include "estimate.cuh"

namespace gsdist {

constexpr uint32_t kBins = 2048;
constexpr uint64_t kTile = kThreads;       // words of marks (blocks of coordinates) in a tile
constexpr uint32_t kNoValue = 0xFFFFFFFF;  // in a sample: a lane beyond the end of the vector

// Of the 31 bits of a magnitude the upper 11, then 10, then 10 are one digit.
__device__ __forceinline__ uint32_t digits_from(uint64_t shift) { return shift == 20 ? 2048 : 1024; }

// The state of one selection, in device memory.
struct Selection {
  uint64_t k;
  uint64_t rank;       // of the magnitude looked for, among those that begin with `prefix`
  uint64_t found;      // coordinates marked
  uint32_t prefix;     // the digits picked so far; after the last digit the magnitude itself
  uint32_t threshold;  // at least 1: zeros need no search, the lowest indices win
  uint32_t scanning;   // the next scan is needed
  uint32_t ranking;    // the digits of the magnitude looked for are not known
  uint64_t bins[kBins];
};

// cuda_kernels.py allocates it.
static_assert(sizeof(Selection) == 8 * (5 + kBins), "the words of a selection");

// What is chosen in a tile, or before it: all that are larger than the smallest magnitude, and of
// those equal to it as many as are left.
struct Counts {
  uint64_t larger;
  uint64_t equal;
};

// Vectors of magnitudes.
struct Values {
  const float* values;

  __device__ __forceinline__ uint32_t magnitude(uint64_t index) const {
    return static_cast<uint32_t>(to_bits(values[index])) & 0x7FFFFFFF;
  }
};

struct Estimates {
  Table table;

  __device__ __forceinline__ uint32_t magnitude(uint64_t index) const {
    return static_cast<uint32_t>(estimate_bits(table, index)) & 0x7FFFFFFF;
  }
};

__device__ __forceinline__ uint64_t blocks_of(uint64_t dimension) {
  return (dimension + kBlock - 1) / kBlock;
}

// The lanes of a block that lie below the dimension.
__device__ __forceinline__ uint64_t valid_lanes(uint64_t block, uint64_t dimension) {
  const uint64_t left = dimension - block * kBlock;
  return left >= kBlock ? ~0ULL : (1ULL << left) - 1;
}

__device__ __forceinline__ uint64_t lowest_lane(uint64_t lanes) {
  return static_cast<uint64_t>(__ffsll(static_cast<long long>(lanes)) - 1);
}

// One thread block.
GSDIST_KERNEL(begin_selection)(Selection* selection, uint64_t dimension, uint64_t k) {
  for (uint32_t bin = threadIdx.x; bin < kBins; bin += kThreads) selection->bins[bin] = 0;
  if (threadIdx.x != 0) return;
  const uint64_t blocks = blocks_of(dimension);
  const uint64_t taken = sample_blocks(blocks);
  const uint64_t sampled = taken == blocks ? dimension : taken * kBlock;
  selection->k = k;
  selection->rank = sample_rank(k, sampled, dimension);
  selection->prefix = 0;
  selection->ranking = 1;
}

// One thread per lane of every sampled block.
template <class Source>
__device__ __forceinline__ void sample(const Source& source, uint32_t* magnitudes,
                                       uint64_t dimension) {
  const uint64_t blocks = blocks_of(dimension);
  const uint64_t taken = sample_blocks(blocks);
  const uint64_t i = global_thread();
  if (i >= taken * kBlock) return;
  const uint64_t block = sample_block(i / kBlock, taken, blocks);
  const uint64_t index = block * kBlock + i % kBlock;
  magnitudes[i] = index < dimension ? source.magnitude(index) : kNoValue;
}

// Counts of digits, in shared memory at first.
class DigitCounts {
 public:
  // All threads of the block must call it.
  __device__ __forceinline__ DigitCounts() {
    __shared__ uint32_t bins[kBins];
    bins_ = bins;
    for (uint32_t bin = threadIdx.x; bin < kBins; bin += kThreads) bins_[bin] = 0;
    __syncthreads();
  }

  // Counts the digit at `shift` if the digits above it are those picked so far.
  __device__ __forceinline__ void add(const Selection& selection, uint64_t shift,
                                      uint32_t magnitude) {
    const uint32_t digits = digits_from(shift);
    if (shift == 20 || magnitude >> shift >> 10 == selection.prefix) {
      atomicAdd(bins_ + (magnitude >> shift & (digits - 1)), 1u);
    }
  }

  // All threads of the block must call it.
  __device__ __forceinline__ void add_to(Selection& selection) {
    __syncthreads();
    for (uint32_t bin = threadIdx.x; bin < kBins; bin += kThreads) {
      if (bins_[bin] != 0) add_atomically(selection.bins + bin, bins_[bin]);
    }
  }

 private:
  uint32_t* bins_;
};

GSDIST_KERNEL(count_digits_of_sample)
(Selection* selection, const uint32_t* magnitudes, uint64_t dimension, uint64_t shift) {
  const uint64_t count = sample_blocks(blocks_of(dimension)) * kBlock;
  DigitCounts counts;
  for (uint64_t i = global_thread(); i < count; i += all_threads()) {
    if (magnitudes[i] != kNoValue) counts.add(*selection, shift, magnitudes[i]);
  }
  counts.add_to(*selection);
}

// One thread block. Picks the digit of the magnitude of the wanted rank, 1 being the largest, and
// clears the bins. A rank beyond all that was counted gives digit 0.
GSDIST_KERNEL(pick_digit)(Selection* selection, uint64_t shift) {
  if (!selection->ranking) return;
  constexpr uint32_t kEach = kBins / kThreads;
  const uint32_t end = kBins - threadIdx.x * kEach;  // the first thread takes the highest bins
  uint64_t mine = 0;
  for (uint32_t bin = end - kEach; bin < end; ++bin) mine += selection->bins[bin];
  const uint64_t rank = selection->rank;
  uint64_t total = 0;
  uint64_t above = sum_before(mine, total);
  const bool here = above < rank && rank <= above + mine;
  const bool nowhere = rank > total && threadIdx.x == 0;
  uint32_t digit = 0;
  if (here) {
    for (digit = end - 1; above + selection->bins[digit] < rank; --digit) {
      above += selection->bins[digit];
    }
  }
  if (here || nowhere) {
    selection->rank = rank - (here ? above : total);
    selection->prefix = selection->prefix * digits_from(shift) + digit;
  }
  __syncthreads();
  for (uint32_t bin = end - kEach; bin < end; ++bin) selection->bins[bin] = 0;
}

// One thread. The sample gave the two upper digits.
GSDIST_KERNEL(set_threshold)(Selection* selection) {
  if (threadIdx.x != 0) return;
  const uint32_t threshold = selection->prefix << 10;
  selection->threshold = threshold > 1 ? threshold : 1;
  selection->scanning = 1;
  selection->found = 0;
}

// One thread. Where too few reach the threshold, all but zeros are looked for.
GSDIST_KERNEL(lower_threshold)(Selection* selection) {
  if (threadIdx.x != 0) return;
  selection->scanning = selection->found < selection->k && selection->threshold > 1;
  if (!selection->scanning) return;
  selection->threshold = 1;
  selection->found = 0;
}

// One thread. Where fewer than k differ from zero, the smallest magnitude to choose is 0.
GSDIST_KERNEL(begin_ranking)(Selection* selection) {
  if (threadIdx.x != 0) return;
  selection->ranking = selection->found >= selection->k;
  selection->rank = selection->k;
  selection->prefix = 0;
}

// Both ballots of a warp whose threads look at lanes l and l + 32 of a block.
__device__ __forceinline__ uint64_t ballot(bool low, bool high) {
  const uint64_t lanes = __ballot_sync(kAllLanes, high);
  return lanes << 32 | __ballot_sync(kAllLanes, low);
}

// One warp per bucket block of every row.
GSDIST_KERNEL(mask_cells)
(const Selection* selection, const float* cells, CellMasks* masks, uint64_t bucket_blocks) {
  if (!selection->scanning) return;
  const uint64_t bucket = global_thread() / kWarp;
  if (bucket >= bucket_blocks) return;
  const int32_t threshold = static_cast<int32_t>(selection->threshold);
  const float* const cell = cells + bucket * kBlock + threadIdx.x % kWarp;
  const int32_t low = to_bits(cell[0]);
  const int32_t high = to_bits(cell[kWarp]);
  constexpr int32_t kSign = -0x7FFFFFFF - 1;
  const CellMasks found = {
      ballot(low >= threshold, high >= threshold),
      ballot((low ^ kSign) >= threshold, (high ^ kSign) >= threshold),
  };
  if (threadIdx.x % kWarp == 0) masks[bucket] = found;
}

// Adds the marked lanes of all threads of the block to selection.found. All must call it.
__device__ __forceinline__ void add_found(Selection& selection, uint64_t lanes) {
  uint64_t total = 0;
  sum_before(static_cast<uint64_t>(__popcll(lanes)), total);
  if (threadIdx.x == 0 && total != 0) add_atomically(&selection.found, total);
}

// The lanes of a block whose estimates reach the threshold of the masks: a median reaches it exactly
// when a majority of the rows do.
__device__ __forceinline__ uint64_t find_lanes(const Table& table, const CellMasks* masks,
                                               uint64_t block) {
  Votes<uint64_t> above(table.rows);
  Votes<uint64_t> below(table.rows);
  for (int q = 0; q < table.rows; ++q) {
    const Target target = locate(table.keys[q], block, table.blocks);
    const CellMasks pair = masks[static_cast<uint64_t>(q) * table.blocks + target.bucket];
    const BitPermutation<uint64_t> permute(target.xor_lane);
    const uint64_t up = xor_bytes_by_shifts(permute(pair.positive), permute.bytes);
    const uint64_t down = xor_bytes_by_shifts(permute(pair.negative), permute.bytes);
    const uint64_t flip = (up ^ down) & target.signs;
    above.add(up ^ flip);
    below.add(down ^ flip);
  }
  return above.bit3 | below.bit3;
}

// One thread per block of coordinates.
GSDIST_KERNEL(find_estimates)
(Selection* selection, uint64_t* marks, const CellMasks* masks, uint64_t rows, uint64_t columns,
 uint64_t seed, uint64_t dimension) {
  if (!selection->scanning) return;
  const Table table = shared_table(nullptr, rows, columns, seed);
  const uint64_t block = global_thread();
  uint64_t lanes = 0;
  if (block < blocks_of(dimension)) {
    lanes = find_lanes(table, masks, block) & valid_lanes(block, dimension);
    marks[block] = lanes;
  }
  add_found(*selection, lanes);
}

// One thread block per tile, one warp per block of coordinates at a time.
GSDIST_KERNEL(find_values)
(Selection* selection, uint64_t* marks, const float* values, uint64_t dimension) {
  if (!selection->scanning) return;
  const uint32_t threshold = selection->threshold;
  const uint64_t begin = blockIdx.x * kTile;
  const Values source = {values};
  uint64_t mine = 0;
  for (uint32_t word = threadIdx.x / kWarp; word < kTile; word += kThreads / kWarp) {
    const uint64_t block = begin + word;
    const uint64_t low = block * kBlock + threadIdx.x % kWarp;
    const uint64_t high = low + kWarp;
    const uint64_t lanes = ballot(low < dimension && source.magnitude(low) >= threshold,
                                  high < dimension && source.magnitude(high) >= threshold);
    if (threadIdx.x % kWarp == 0 && block < blocks_of(dimension)) marks[block] = lanes;
    if (threadIdx.x % kWarp == word / (kThreads / kWarp)) mine = lanes;
  }
  add_found(*selection, mine);
}

template <class Source>
__device__ __forceinline__ void count_digits(Selection& selection, const Source& source,
                                             const uint64_t* marks, uint64_t dimension,
                                             uint64_t shift) {
  if (!selection.ranking) return;
  DigitCounts counts;
  for (uint64_t block = global_thread(); block < blocks_of(dimension); block += all_threads()) {
    for (uint64_t lanes = marks[block]; lanes != 0; lanes &= lanes - 1) {
      counts.add(selection, shift, source.magnitude(block * kBlock + lowest_lane(lanes)));
    }
  }
  counts.add_to(selection);
}

// The lanes of one block that are larger than the smallest magnitude to choose, and equal to it.
struct Choice {
  uint64_t larger;
  uint64_t equal;
};

template <class Source>
__device__ __forceinline__ Choice choose(const Selection& selection, const Source& source,
                                         uint64_t block, uint64_t marked, uint64_t dimension) {
  if (!selection.ranking) return {marked, valid_lanes(block, dimension) & ~marked};
  Choice choice = {0, 0};
  for (uint64_t lanes = marked; lanes != 0; lanes &= lanes - 1) {
    const uint64_t lane = lowest_lane(lanes);
    const uint32_t magnitude = source.magnitude(block * kBlock + lane);
    choice.larger |= static_cast<uint64_t>(magnitude > selection.prefix) << lane;
    choice.equal |= static_cast<uint64_t>(magnitude == selection.prefix) << lane;
  }
  return choice;
}

// One thread block per tile.
template <class Source>
__device__ __forceinline__ void count_chosen(const Selection& selection, const Source& source,
                                             const uint64_t* marks, Counts* tiles,
                                             uint64_t dimension) {
  const uint64_t block = global_thread();
  Choice choice = {0, 0};
  if (block < blocks_of(dimension)) {
    choice = choose(selection, source, block, marks[block], dimension);
  }
  Counts total = {0, 0};
  sum_before(static_cast<uint64_t>(__popcll(choice.larger)), total.larger);
  sum_before(static_cast<uint64_t>(__popcll(choice.equal)), total.equal);
  if (threadIdx.x == 0) tiles[blockIdx.x] = total;
}

// One thread block. Turns the counts of tiles into counts before them.
GSDIST_KERNEL(place_tiles)(Counts* tiles, uint64_t count) {
  Counts before = {0, 0};
  for (uint64_t first = 0; first < count; first += kThreads) {
    const uint64_t tile = first + threadIdx.x;
    const Counts mine = tile < count ? tiles[tile] : Counts{0, 0};
    Counts total = {0, 0};
    const uint64_t larger = sum_before(mine.larger, total.larger);
    const uint64_t equal = sum_before(mine.equal, total.equal);
    if (tile < count) tiles[tile] = {before.larger + larger, before.equal + equal};
    before = {before.larger + total.larger, before.equal + total.equal};
  }
}

// One thread block per tile. `missing` = how many of the equal ones are chosen: k less all larger.
template <class Source>
__device__ __forceinline__ void write_chosen(const Selection& selection, const Source& source,
                                             const uint64_t* marks, const Counts* tiles,
                                             int64_t* out_indices, uint64_t dimension) {
  const uint64_t block = global_thread();
  Choice choice = {0, 0};
  if (block < blocks_of(dimension)) {
    choice = choose(selection, source, block, marks[block], dimension);
  }
  uint64_t total = 0;
  uint64_t larger = tiles[blockIdx.x].larger;
  uint64_t equal = tiles[blockIdx.x].equal;
  larger += sum_before(static_cast<uint64_t>(__popcll(choice.larger)), total);
  equal += sum_before(static_cast<uint64_t>(__popcll(choice.equal)), total);
  // With digits ranked, `rank` of the equal ones are wanted; else what the marked leave over.
  const uint64_t missing = selection.ranking ? selection.rank : selection.k - selection.found;
  for (uint64_t lanes = choice.larger | choice.equal; lanes != 0; lanes &= lanes - 1) {
    const uint64_t lane = lowest_lane(lanes);
    const bool is_equal = choice.equal >> lane & 1;
    const uint64_t equal_chosen = equal < missing ? equal : missing;
    if (!is_equal || equal < missing) {
      out_indices[larger + equal_chosen] = static_cast<int64_t>(block * kBlock + lane);
    }
    equal += is_equal;
    larger += !is_equal;
  }
}

GSDIST_KERNEL(sample_values)
(uint32_t* magnitudes, uint64_t dimension, const float* values) {
  sample(Values{values}, magnitudes, dimension);
}

GSDIST_KERNEL(sample_estimates)
(uint32_t* magnitudes, uint64_t dimension, const float* cells, uint64_t rows, uint64_t columns,
 uint64_t seed) {
  sample(Estimates{shared_table(cells, rows, columns, seed)}, magnitudes, dimension);
}

GSDIST_KERNEL(count_digits_of_values)
(Selection* selection, const uint64_t* marks, uint64_t dimension, uint64_t shift,
 const float* values) {
  count_digits(*selection, Values{values}, marks, dimension, shift);
}

GSDIST_KERNEL(count_digits_of_estimates)
(Selection* selection, const uint64_t* marks, uint64_t dimension, uint64_t shift,
 const float* cells, uint64_t rows, uint64_t columns, uint64_t seed) {
  count_digits(*selection, Estimates{shared_table(cells, rows, columns, seed)}, marks, dimension,
               shift);
}

GSDIST_KERNEL(count_chosen_values)
(const Selection* selection, const uint64_t* marks, Counts* tiles, uint64_t dimension,
 const float* values) {
  count_chosen(*selection, Values{values}, marks, tiles, dimension);
}

GSDIST_KERNEL(count_chosen_estimates)
(const Selection* selection, const uint64_t* marks, Counts* tiles, uint64_t dimension,
 const float* cells, uint64_t rows, uint64_t columns, uint64_t seed) {
  count_chosen(*selection, Estimates{shared_table(cells, rows, columns, seed)}, marks, tiles,
               dimension);
}

GSDIST_KERNEL(write_chosen_values)
(const Selection* selection, const uint64_t* marks, const Counts* tiles, int64_t* out_indices,
 uint64_t dimension, const float* values) {
  write_chosen(*selection, Values{values}, marks, tiles, out_indices, dimension);
}

GSDIST_KERNEL(write_chosen_estimates)
(const Selection* selection, const uint64_t* marks, const Counts* tiles, int64_t* out_indices,
 uint64_t dimension, const float* cells, uint64_t rows, uint64_t columns, uint64_t seed) {
  write_chosen(*selection, Estimates{shared_table(cells, rows, columns, seed)}, marks, tiles,
               out_indices, dimension);
}

}  // namespace gsdist
