// How a kernel asks for threads: a callback, so that it runs on whatever pool its caller has.
#pragma once

#include <cstdint>

namespace ptrain {

// Works on [begin, end); called from several threads at once with disjoint ranges.
using RangeTask = void (*)(std::int64_t begin, std::int64_t end, void* context);

// Calls task on ranges that cover [0, count) once, none smaller than grain but the last, and returns
// when all are done. This is the shape of torch's parallel_for.
using ParallelFor = void (*)(std::int64_t count, std::int64_t grain, RangeTask task, void* context);

inline void serial_for(std::int64_t count, std::int64_t /*grain*/, RangeTask task, void* context) {
  if (count > 0) task(0, count, context);
}

}  // namespace ptrain
