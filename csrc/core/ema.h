// Exponential moving average of many tensors in one call, without torch.
#pragma once

#include <cstdint>

#include "parallel.h"

namespace ptrain {

enum class WeightType : std::int32_t {
  float32 = 0,   // float, shadow float
  bfloat16 = 1,  // uint16 bits, shadow float
  float16 = 2,   // uint16 bits, shadow float
  float64 = 3,   // double, shadow double
};

// One tensor: dense, its weight and its shadow in the same order of elements, not overlapping.
struct EmaTensor {
  void* shadow;
  const void* weight;
  std::int64_t size;  // elements; may be 0, and then the pointers may be null
  WeightType type;
};

// shadow += (1 - decay) * (weight - shadow) for all elements of all tensors; decay in [0, 1].
//
// A tensor larger than a chunk is split among threads too. The result does not depend on the number of
// threads, to the last bit: each element is computed by itself. What is not finite stays so: NaN
// gives NaN, an infinite weight an infinite shadow, an infinite shadow NaN (as torch.lerp).
void ema_update(const EmaTensor* tensors, std::int64_t count, double decay,
                ParallelFor parallel_for = serial_for);

}  // namespace ptrain
