// A threshold that a selection can start from: how a vector is sampled and which rank to take.
#pragma once

#include "hash.h"
#include "portable.h"

namespace gsdist {

// A 64th of the blocks, but not so few that the threshold is a guess, and not more than it needs.
GSDIST_INLINE uint64_t sample_blocks(uint64_t blocks) {
  const uint64_t wanted = blocks / 64 < 512 ? 512 : blocks / 64 > 4096 ? 4096 : blocks / 64;
  return wanted < blocks ? wanted : blocks;
}

// Sampled block j of `taken`: one in each of some equal stretches, at a hashed place so that no
// period of the data can fall in step with the sample.
GSDIST_INLINE uint64_t sample_block(uint64_t j, uint64_t taken, uint64_t blocks) {
  const uint64_t begin = j * blocks / taken;
  const uint64_t length = (j + 1) * blocks / taken - begin;
  return begin + (length * (mix64(j) >> 32) >> 32);
}

// Rank in the sample of a threshold that k of the source very likely reach: the expected rank of
// the k-th largest and four standard deviations.
GSDIST_INLINE uint64_t sample_rank(uint64_t k, uint64_t sampled, uint64_t dimension) {
  if (sampled == dimension) return k;
  const double expected =
      static_cast<double>(k) * static_cast<double>(sampled) / static_cast<double>(dimension);
  return static_cast<uint64_t>(expected + 4 * sqrt(expected) + 8);
}

}  // namespace gsdist
