// Counting, for the 64 lanes of a block at once, in how many rows a cell reaches the threshold.
// Word: uint64_t or a vector of such words.
#pragma once

#include "portable.h"

namespace gsdist {

// Byte i of each word becomes byte i XOR x (0 <= x < 8), where no instruction does it.
template <class Word>
GSDIST_INLINE Word xor_bytes_by_shifts(Word v, Word x) {
  const Word swap8 = (0 - (x & 1)) & 0x00FF00FF00FF00FFULL;
  const Word swap16 = (0 - (x >> 1 & 1)) & 0x0000FFFF0000FFFFULL;
  const Word swap32 = (0 - (x >> 2 & 1)) & 0x00000000FFFFFFFFULL;
  Word t = (v ^ (v >> 8)) & swap8;
  v ^= t ^ (t << 8);
  t = (v ^ (v >> 16)) & swap16;
  v ^= t ^ (t << 16);
  t = (v ^ (v >> 32)) & swap32;
  return v ^ t ^ (t << 32);
}

// Bit l of each byte becomes bit l XOR (x mod 8); the bytes of a word are moved by `bytes`.
template <class Word>
struct BitPermutation {
  Word swap1, swap2, swap4, bytes;

  GSDIST_MEMBER explicit BitPermutation(Word x)
      : swap1((0 - (x & 1)) & 0x5555555555555555ULL),
        swap2((0 - (x >> 1 & 1)) & 0x3333333333333333ULL),
        swap4((0 - (x >> 2 & 1)) & 0x0F0F0F0F0F0F0F0FULL),
        bytes(x >> 3) {}

  GSDIST_MEMBER Word operator()(Word v) const {
    Word t = (v ^ (v >> 1)) & swap1;
    v ^= t ^ (t << 1);
    t = (v ^ (v >> 2)) & swap2;
    v ^= t ^ (t << 2);
    t = (v ^ (v >> 4)) & swap4;
    return v ^ t ^ (t << 4);
  }
};

// Counts votes for every bit position of the words. Starting at 8 - majority, bit 3 of the count is
// the verdict (at most 15 rows, so it never runs over).
template <class Word>
struct Votes {
  Word bit0, bit1, bit2, bit3;

  GSDIST_MEMBER explicit Votes(int rows) {
    const int start = 8 - (rows + 1) / 2;
    const Word zero = {};
    bit0 = start & 1 ? ~zero : zero;
    bit1 = start & 2 ? ~zero : zero;
    bit2 = start & 4 ? ~zero : zero;
    bit3 = zero;
  }

  GSDIST_MEMBER void add(Word vote) {
    const Word carry0 = bit0 & vote;
    bit0 ^= vote;
    const Word carry1 = bit1 & carry0;
    bit1 ^= carry0;
    bit3 |= bit2 & carry1;
    bit2 ^= carry1;
  }
};

}  // namespace gsdist
