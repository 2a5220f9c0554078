// The few vector operations that the languages' vector types lack, for the SIMD level of the
// translation unit. Everything else in kernels.cpp is written once on Ints and Words.
#pragma once

#include <cstdint>
#include <cstring>

#include "votes.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace gsdist {
namespace {

// At the AVX-512 level numbers stay in 256 bits: on Zen 4, where it was measured, a 512-bit store
// takes two cycles, and encode was slower by a fifth. Words, which are hashed, take 512.
#if defined(__AVX512F__)
constexpr int kLanes = 8;
constexpr int kWords = 8;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kWords = 4;
#else
constexpr int kLanes = 4;
constexpr int kWords = 2;
#endif

typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef uint64_t Words __attribute__((vector_size(kWords * 8)));
typedef float Floats __attribute__((vector_size(kLanes * 4)));

// The low (0) or high (1) half of a word, read from memory: words that come from there are then
// broadcast by the load itself.
inline int32_t half_of(const uint64_t& word, int which) {
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  which ^= 1;
#endif
  int32_t half;
  std::memcpy(&half, reinterpret_cast<const char*>(&word) + 4 * which, sizeof half);
  return half;
}

#if defined(__AVX2__)

// Lane l of the result is lane l XOR (x mod kLanes) of v.
inline Ints xor_lanes(Ints v, const uint64_t& x) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i index = _mm256_xor_si256(lanes, _mm256_set1_epi32(half_of(x, 0)));
  return (Ints)_mm256_permutevar8x32_epi32((__m256i)v, index);
}

// Negates lane l of v (float bits) where bit part * kLanes + l of word is set.
inline Ints negate_lanes(Ints v, const uint64_t& word, int part) {
  const __m256i to_top = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
  const __m256i shift = _mm256_sub_epi32(to_top, _mm256_set1_epi32(part % 4 * 8));
  const __m256i bits = _mm256_sllv_epi32(_mm256_set1_epi32(half_of(word, part / 4)), shift);
  const __m256i sign = _mm256_set1_epi32(INT32_MIN);
#if defined(__AVX512F__)
  constexpr int kAndXor = 0x6A;  // truth table of (a & b) ^ c
  return (Ints)_mm256_ternarylogic_epi32(bits, sign, (__m256i)v, kAndXor);
#else
  return v ^ (Ints)_mm256_and_si256(bits, sign);
#endif
}

// Bit l is set where lane l is at least the threshold.
inline uint64_t at_least(Ints v, int32_t threshold) {
#if defined(__AVX512F__)
  return _mm256_cmpge_epi32_mask((__m256i)v, _mm256_set1_epi32(threshold));
#else
  const __m256i above = _mm256_cmpgt_epi32((__m256i)v, _mm256_set1_epi32(threshold - 1));
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(above)));
#endif
}

#if defined(__AVX512F__)

// Byte i of each word becomes byte i XOR x (0 <= x < 8, one x per word).
inline Words xor_bytes(Words v, Words x) {
  const __m512i low_byte = _mm512_set4_epi32(0x08080808, 0x08080808, 0, 0);
  const __m512i bytes = _mm512_set4_epi32(0x0F0E0D0C, 0x0B0A0908, 0x07060504, 0x03020100);
  const __m512i index = _mm512_xor_si512(bytes, _mm512_shuffle_epi8((__m512i)x, low_byte));
  return (Words)_mm512_shuffle_epi8((__m512i)v, index);
}

// Product of the low 32 bits of each word.
inline Words multiply_low(Words a, Words b) {
  // The masked form: the plain one makes GCC 12 warn about its own header.
  return (Words)_mm512_maskz_mul_epu32(0xFF, (__m512i)a, (__m512i)b);
}

#else

inline Words xor_bytes(Words v, Words x) {
  const __m256i low_byte = _mm256_setr_epi32(0, 0, 0x08080808, 0x08080808, 0, 0, 0x08080808,
                                             0x08080808);
  const __m256i bytes = _mm256_setr_epi32(0x03020100, 0x07060504, 0x0B0A0908, 0x0F0E0D0C,
                                          0x03020100, 0x07060504, 0x0B0A0908, 0x0F0E0D0C);
  const __m256i index = _mm256_xor_si256(bytes, _mm256_shuffle_epi8((__m256i)x, low_byte));
  return (Words)_mm256_shuffle_epi8((__m256i)v, index);
}

inline Words multiply_low(Words a, Words b) {
  return (Words)_mm256_mul_epu32((__m256i)a, (__m256i)b);
}

#endif

#else

inline Ints xor_lanes(Ints v, const uint64_t& x) {
  const uint64_t low = x % kLanes;
  return Ints{v[low], v[1 ^ low], v[2 ^ low], v[3 ^ low]};
}

inline Ints negate_lanes(Ints v, const uint64_t& word, int part) {
  const int32_t bits = static_cast<int32_t>(word >> (part * kLanes));
  const Ints lane = {1, 2, 4, 8};
  const Ints chosen = (Ints{bits, bits, bits, bits} & lane) == lane;
  return v ^ (chosen & Ints{INT32_MIN, INT32_MIN, INT32_MIN, INT32_MIN});
}

inline uint64_t at_least(Ints v, int32_t threshold) {
  return static_cast<uint64_t>(v[0] >= threshold) | static_cast<uint64_t>(v[1] >= threshold) << 1 |
         static_cast<uint64_t>(v[2] >= threshold) << 2 |
         static_cast<uint64_t>(v[3] >= threshold) << 3;
}

inline Words xor_bytes(Words v, Words x) { return xor_bytes_by_shifts(v, x); }

inline Words multiply_low(Words a, Words b) { return (a & 0xFFFFFFFF) * (b & 0xFFFFFFFF); }

#endif

}  // namespace
}  // namespace gsdist
