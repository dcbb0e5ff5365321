// What the halting loss and the exit rule share: numbers of any type, logarithms near 0 and 1, memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

#include "halting.h"
#include "numeric.h"

namespace ptrain {
namespace {

// Bytes that begin at a multiple of 64, as std::unique_ptr would keep them; <memory> is a third of a second to
// compile.
class AlignedMemory {
 public:
  AlignedMemory() = default;
  explicit AlignedMemory(std::int64_t bytes)
      : bytes_(static_cast<char*>(::operator new(static_cast<std::size_t>(bytes), std::align_val_t{64}))) {}
  AlignedMemory(const AlignedMemory&) = delete;
  AlignedMemory& operator=(const AlignedMemory&) = delete;
  AlignedMemory& operator=(AlignedMemory&& other) noexcept {
    char* const bytes = bytes_;
    bytes_ = other.bytes_;
    other.bytes_ = bytes;
    return *this;
  }
  ~AlignedMemory() { ::operator delete(bytes_, std::align_val_t{64}); }

  char* get() const { return bytes_; }
  explicit operator bool() const { return bytes_ != nullptr; }

 private:
  char* bytes_ = nullptr;
};

// log(1 - e^x) for x <= 0, accurate at both ends: -inf at 0, 0 at -inf.
inline double log_one_minus_exp(double x) {
  return x > -0.6931471805599453 ? __builtin_log(-__builtin_expm1(x)) : __builtin_log1p(-__builtin_exp(x));
}

inline double log_sigmoid(double u) {
  const double tail = __builtin_log1p(__builtin_exp(-__builtin_fabs(u)));  // NaN for NaN
  return u < 0.0 ? u - tail : -tail;
}

inline double halting_number(HaltingType type, const void* from, std::int64_t i) {
  switch (type) {
    case HaltingType::float64: return static_cast<const double*>(from)[i];
    case HaltingType::float32: return static_cast<const float*>(from)[i];
    case HaltingType::bfloat16: return float_from_bfloat16(static_cast<const std::uint16_t*>(from)[i]);
    default: return float_from_float16(static_cast<const std::uint16_t*>(from)[i]);
  }
}

inline void halting_write(bool in_double, void* to, std::int64_t i, double value) {
  if (in_double) {
    static_cast<double*>(to)[i] = value;
  } else {
    static_cast<float*>(to)[i] = static_cast<float>(value);
  }
}

}  // namespace
}  // namespace ptrain
