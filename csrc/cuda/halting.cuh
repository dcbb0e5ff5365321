// Numbers of any type, and logarithms near 0 and 1, for the halting loss and the exit rule.
#pragma once

#include "device.cuh"
#include "halting.h"

namespace ptrain::cuda {

// The type is the same for all threads: the branch costs little beside the access.
template <typename Real>
__device__ inline Real number_at(const void* from, NumberType type, std::int64_t i) {
  switch (type) {
    case NumberType::float32: return static_cast<Real>(static_cast<const float*>(from)[i]);
    case NumberType::bfloat16: return static_cast<Real>(widen(static_cast<const Bfloat16*>(from)[i]));
    case NumberType::float16: return static_cast<Real>(widen(static_cast<const Float16*>(from)[i]));
    case NumberType::float64: return static_cast<Real>(static_cast<const double*>(from)[i]);
    case NumberType::int64: return static_cast<Real>(static_cast<const std::int64_t*>(from)[i]);
    default: return static_cast<Real>(static_cast<const std::int32_t*>(from)[i]);
  }
}

__device__ inline double at(const Numbers& numbers, std::int64_t i) {
  return numbers.values == nullptr ? numbers.all : number_at<double>(numbers.values, numbers.type, numbers.step * i);
}

template <typename Real>
__device__ inline void put_number(void* to, NumberType type, std::int64_t i, Real value) {
  switch (type) {
    case NumberType::float32: static_cast<float*>(to)[i] = static_cast<float>(value); break;
    case NumberType::bfloat16:
      static_cast<Bfloat16*>(to)[i] = Narrow<Bfloat16>::of(static_cast<float>(value));
      break;
    case NumberType::float16: static_cast<Float16*>(to)[i] = Narrow<Float16>::of(static_cast<float>(value)); break;
    default: static_cast<double*>(to)[i] = value;
  }
}

__device__ inline void put_result(void* to, bool in_double, std::int64_t i, double value) {
  if (in_double) {
    static_cast<double*>(to)[i] = value;
  } else {
    static_cast<float*>(to)[i] = static_cast<float>(value);
  }
}

// log(1 - e^x) for x <= 0, accurate at both ends: -inf at 0, 0 at -inf.
__device__ inline double log_one_minus_exp(double x) {
  return x > -0.6931471805599453 ? log(-expm1(x)) : log1p(-exp(x));
}

__device__ inline double log_sigmoid(double u) {
  const double tail = log1p(exp(-fabs(u)));  // NaN for NaN
  return u < 0.0 ? u - tail : -tail;
}

// How many threads work on a row: four classes each, a warp at most, and a block for the widest.
inline int lanes_for(std::int64_t classes, int threads_of_block) {
  if (classes > 256) return threads_of_block;
  int lanes = 1;
  while (lanes < 32 && lanes * 4 < classes) lanes *= 2;
  return lanes;
}

}  // namespace ptrain::cuda
