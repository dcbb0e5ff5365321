// The types of numbers that the norm and the step read and write.
#pragma once

#include <cstdint>

#include "numeric.h"

namespace ptrain {

enum class FloatType : std::int32_t { float32 = 0, bfloat16 = 1, float16 = 2, float64 = 3 };

inline std::int64_t bytes_of(FloatType type) {
  switch (type) {
    case FloatType::float64: return 8;
    case FloatType::float32: return 4;
    default: return 2;
  }
}

// A 16-bit number in memory; arithmetic is done in float32.
struct StoredBfloat16 {
  std::uint16_t bits;
};
struct StoredFloat16 {
  std::uint16_t bits;
};

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(StoredBfloat16 value) { return float_from_bfloat16(value.bits); }
inline float widen(StoredFloat16 value) { return float_from_float16(value.bits); }

// Rounded to the nearest, ties to even.
inline void narrow(float value, float& out) { out = value; }
inline void narrow(double value, double& out) { out = value; }
inline void narrow(float value, StoredBfloat16& out) { out.bits = bfloat16_from_float(value); }
inline void narrow(float value, StoredFloat16& out) { out.bits = float16_from_float(value); }

}  // namespace ptrain
