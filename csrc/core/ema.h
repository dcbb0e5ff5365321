// Exponential moving average of many tensors in one call, without torch.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel.h"

namespace ptrain {

enum class WeightType : std::int32_t {
  float32 = 0,   // float, shadow float
  bfloat16 = 1,  // uint16 bits, shadow float
  float16 = 2,   // uint16 bits, shadow float
  float64 = 3,   // double, shadow double
  copy8 = 4,     // what is not averaged but copied, as integers are: its bits
  copy16 = 5,
  copy32 = 6,
  copy64 = 7,
};

// A dimension of a pair whose elements do not lie in one row; strides in elements.
struct EmaDimension {
  std::int64_t size;
  std::int64_t shadow_stride;
  std::int64_t weight_stride;
};

// The dimensions of a pair, the closest elements last, as few as will do. None: both lie in one row, in
// the same order, without gaps ("flat").
using EmaLayout = std::vector<EmaDimension>;

// Sorts the dimensions, and joins those that can be walked as one.
EmaLayout ema_layout(const std::int64_t* sizes, const std::int64_t* shadow_strides,
                     const std::int64_t* weight_strides, std::int64_t dimensions);

// Whether two elements of the shadow may be one and the same memory, as where a stride is 0.
bool overlaps_itself(const EmaLayout& layout);

// One tensor. Shadow and weight do not overlap, and no shadow overlaps another tensor's.
struct EmaTensor {
  void* shadow;
  const void* weight;
  std::int64_t size;  // elements; may be 0, and then the pointers may be null
  WeightType type;
  const EmaLayout* layout;  // null: flat
};

// shadow += (1 - decay) * (weight - shadow) for all elements of all tensors; decay in [0, 1]. From a decay
// of one half down it is weight - decay * (weight - shadow), which is exact where decay is 0.
//
// starts  count + 1 numbers: how many elements come before each tensor, and all of them (ema_starts)
//
// The elements of all tensors are one row, of which each thread gets an equal part, so that many small
// tensors cost what one large one does. The result depends neither on the number of threads nor on the
// instruction set, to the last bit. What is not finite stays so: NaN gives NaN, an infinite weight an
// infinite shadow, an infinite shadow NaN (as torch.lerp).
void ema_update(const EmaTensor* tensors, const std::int64_t* starts, std::int64_t count,
                double decay, ParallelFor parallel_for = serial_for);

std::vector<std::int64_t> ema_starts(const EmaTensor* tensors, std::int64_t count);

}  // namespace ptrain
