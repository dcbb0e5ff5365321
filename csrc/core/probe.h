// How fast memory is: the bare form of an update in place, to measure kernels against.
#pragma once

#include <cstdint>

#include "parallel.h"

namespace ptrain {

// x[i] = x[i] / 2 + y[i] for flat arrays: two reads and a write per element, as a moving average, with
// nothing to look up and next to nothing to compute.
void probe_update(float* x, const float* y, std::int64_t size, ParallelFor parallel_for = serial_for);

}  // namespace ptrain
