// The number types of gradients and tables on the wire, to and from float32.
//
// In integer arithmetic, so that CPU and GPU agree without the vendors' headers: rounding is to
// nearest, ties to even; what is too large becomes infinity; NaN stays NaN.
#pragma once

#include "../portable.h"

namespace gsdist {

struct Float16 {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

// Calls M(type, name) for every number type.
#define GSDIST_FOR_NUMBERS(M) M(float, float32) M(Float16, float16) M(BFloat16, bfloat16)

__device__ __forceinline__ float widen(float number) { return number; }

__device__ __forceinline__ float widen(BFloat16 number) {
  return from_bits(static_cast<int32_t>(static_cast<uint32_t>(number.bits) << 16));
}

__device__ __forceinline__ float widen(Float16 number) {
  const uint32_t sign = static_cast<uint32_t>(number.bits & 0x8000) << 16;
  const uint32_t shifted = static_cast<uint32_t>(number.bits & 0x7FFF) << 13;
  // Multiplying by 2^112 corrects the bias of the exponent, also of subnormal numbers.
  uint32_t bits = static_cast<uint32_t>(
      to_bits(from_bits(static_cast<int32_t>(shifted)) * from_bits(0x77800000)));
  if (shifted >= 0x0F800000) bits = shifted | 0x7F800000;  // infinity and NaN
  return from_bits(static_cast<int32_t>(sign | bits));
}

template <class Number>
__device__ Number narrow(float value);

template <>
__device__ __forceinline__ float narrow<float>(float value) {
  return value;
}

template <>
__device__ __forceinline__ BFloat16 narrow<BFloat16>(float value) {
  const uint32_t bits = static_cast<uint32_t>(to_bits(value));
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}

template <>
__device__ __forceinline__ Float16 narrow<Float16>(float value) {
  const uint32_t bits = static_cast<uint32_t>(to_bits(value));
  const uint32_t sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return {static_cast<uint16_t>(sign | 0x7E00)};
  if (magnitude >= 0x477FF000) return {static_cast<uint16_t>(sign | 0x7C00)};
  if (magnitude < 0x38800000) {
    // Subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits.
    const int32_t sum = to_bits(from_bits(static_cast<int32_t>(magnitude)) + 0.5f);
    return {static_cast<uint16_t>(sign | static_cast<uint32_t>(sum - 0x3F000000))};
  }
  const uint32_t rounded = magnitude - 0x38000000 + 0xFFF + (magnitude >> 13 & 1);
  return {static_cast<uint16_t>(sign | rounded >> 13)};
}

}  // namespace gsdist
