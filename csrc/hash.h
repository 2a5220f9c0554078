// Sketch format version 1: where a block of 64 coordinates goes and with which signs.
//
// Plain integer arithmetic modulo 2^64, so that C++, CUDA and numba agree bit by bit.
// docs/sketch-format.md describes the same functions in words, with test vectors.
#pragma once

#include "portable.h"

namespace gsdist {

inline constexpr int kFormatVersion = 1;
constexpr int kBlockShift = 6;
constexpr int kBlock = 1 << kBlockShift;
constexpr int kMaxRows = 15;
constexpr uint64_t kGolden = 0x9E3779B97F4A7C15ULL;

// The functions marked `Word` also take vectors of 64-bit words.

// The finaliser of SplitMix64: a bijection of 64-bit words.
template <class Word>
GSDIST_INLINE Word mix64(Word z) {
  z ^= z >> 30;
  z *= 0xBF58476D1CE4E5B9ULL;
  z ^= z >> 27;
  z *= 0x94D049BB133111EBULL;
  z ^= z >> 31;
  return z;
}

GSDIST_INLINE uint64_t row_key(uint64_t seed, int row) {
  return mix64(seed + kGolden * (static_cast<uint64_t>(row) + 1));
}

// Bit l set: lane l of the block enters with a minus.
template <class Word>
GSDIST_INLINE Word block_signs(uint64_t key, Word block) {
  return mix64(block * kGolden + key);
}

template <class Word>
GSDIST_INLINE Word block_position(Word signs) {
  return (signs ^ (signs >> 32)) * 0xD6E8FEB86659FD93ULL;
}

GSDIST_INLINE uint64_t bucket_block(uint64_t position, uint64_t bucket_blocks) {
  return ((position >> 32) * bucket_blocks) >> 32;
}

// Lane l of the block goes to lane l XOR lane_xor of the bucket block.
template <class Word>
GSDIST_INLINE Word lane_xor(Word position) {
  return (position >> 26) & 63;
}

}  // namespace gsdist
