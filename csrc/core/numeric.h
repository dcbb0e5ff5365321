// Reads 16-bit floats as float32, in integer arithmetic that a compiler can vectorise.
#pragma once

#include <cstdint>
#include <cstring>

namespace ptrain {

inline float float_from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
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

}  // namespace ptrain
