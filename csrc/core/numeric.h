// Reads and writes 16-bit floats, in integer arithmetic that a compiler can vectorise.
#pragma once

#include <cstdint>
#include <cstring>

namespace ptrain {

inline float float_from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline std::uint32_t bits_of_float(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_from_bfloat16(std::uint16_t bits) {
  return float_from_bits(static_cast<std::uint32_t>(bits) << 16);
}

// Subnormals are made by a subtraction of two normal numbers, so the result is right even where the
// processor is told to flush subnormals to zero (torch.set_flush_denormal).
inline float float_from_float16(std::uint16_t bits) {
  constexpr std::uint32_t rebias = 112u << 23;  // float32 counts its exponent from 127, float16 from 15
  const std::uint32_t sign = (bits & 0x8000u) << 16;
  const std::uint32_t magnitude = (bits & 0x7fffu) << 13;
  const std::uint32_t exponent = bits & 0x7c00u;
  const float smallest_normal = float_from_bits(113u << 23);
  const float subnormal = float_from_bits(magnitude + (113u << 23)) - smallest_normal;
  std::uint32_t subnormal_bits;
  std::memcpy(&subnormal_bits, &subnormal, sizeof subnormal);
  // Infinity and NaN: the exponent goes up by another 112, from 143 to 255.
  const std::uint32_t top = exponent == 0x7c00u ? rebias : 0u;
  const std::uint32_t normal_bits = magnitude + rebias + top;
  return float_from_bits(sign | (exponent == 0u ? subnormal_bits : normal_bits));
}

// To the nearest, ties to even; NaN stays NaN, with the bits that torch gives it.
inline std::uint16_t bfloat16_from_float(float value) {
  const std::uint32_t bits = bits_of_float(value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return static_cast<std::uint16_t>(nan ? 0x7fc0u : rounded);
}

// To the nearest, ties to even; beyond 65519 infinity; NaN stays NaN. A subnormal result is rounded by
// the addition of 0.5, whose last bit is the smallest subnormal.
inline std::uint16_t float16_from_float(float value) {
  const std::uint32_t bits = bits_of_float(value);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  const std::uint32_t half = 126u << 23;
  const std::uint32_t subnormal = bits_of_float(float_from_bits(magnitude) + float_from_bits(half)) - half;
  const std::uint32_t odd = (magnitude >> 13) & 1u;
  const std::uint32_t normal = (magnitude - (112u << 23) + 0xfffu + odd) >> 13;
  const std::uint32_t finite = magnitude < (113u << 23) ? subnormal : normal;
  const std::uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const std::uint32_t rounded = magnitude >= 0x477ff000u ? special : finite;  // 65520 and more
  return static_cast<std::uint16_t>(rounded | (bits >> 16 & 0x8000u));
}

}  // namespace ptrain
