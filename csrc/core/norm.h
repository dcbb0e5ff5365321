// The sum of squares over all elements of many tensors, in double, without torch.
#pragma once

#include <cstdint>

#include "parallel.h"
#include "step_types.h"

namespace ptrain {

// One tensor: dense, its elements in any order.
struct NormTensor {
  const void* data;
  std::int64_t size;  // elements; may be 0, and then the pointer may be null
  FloatType type;
};

// Squares and sums are in double, whatever the type. The order of the additions depends on the sizes
// alone: chunks of 16 Ki elements of the tensors laid end to end, 32 running sums in a chunk, the chunks
// one after another. So the result is the same to the last bit for any number of threads and any
// instruction set. What is not finite comes through as infinity or NaN; a double beyond 1e154 overflows.
double sum_of_squares(const NormTensor* tensors, std::int64_t count,
                      ParallelFor parallel_for = serial_for);

}  // namespace ptrain
