// The probe: one loop over two flat arrays, an equal part for each thread.
#include "probe.h"

#include "each_isa.h"
#include "small.h"

namespace ptrain {
namespace {
using ProbeSpan = void (*)(float* x, const float* y, std::int64_t size);
}
}  // namespace ptrain

#define PTRAIN_SPANS "probe_spans.inl"
#include "for_each_isa.inl"

namespace ptrain {
namespace {

constexpr std::int64_t block = 1024;  // elements, so that the parts begin at whole cache lines

struct Job {
  float* x;
  const float* y;
  std::int64_t size;
  ProbeSpan span;
};

void update_blocks(std::int64_t begin, std::int64_t end, void* context) {
  const Job& job = *static_cast<const Job*>(context);
  const std::int64_t first = begin * block, last = smaller_of(end * block, job.size);
  job.span(job.x + first, job.y + first, last - first);
}

}  // namespace

void probe_update(float* x, const float* y, std::int64_t size, ParallelFor parallel_for) {
  Job job{x, y, size, PTRAIN_PICK(probe_table)};
  parallel_for((size + block - 1) / block, 32, update_blocks, &job);
}

}  // namespace ptrain
