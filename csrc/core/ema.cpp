// The moving average: tensors are cut into chunks, and a chunk is one flat loop.
#include "ema.h"

#include <algorithm>
#include <vector>

#include "numeric.h"

namespace ptrain {
namespace {

// 64 KiB of shadow: small enough to share one large tensor among many threads, large enough that
// finding the chunk's tensor costs nothing beside it.
constexpr std::int64_t chunk_size = 16 * 1024;
// Two chunks, 32 Ki elements, take about 10 us: less is not worth waking a thread for.
constexpr std::int64_t chunks_per_task = 2;

inline float load(float weight) { return weight; }
inline double load(double weight) { return weight; }

struct Bfloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};
inline float load(Bfloat16 weight) { return float_from_bfloat16(weight.bits); }
inline float load(Float16 weight) { return float_from_float16(weight.bits); }

// From a step of one half on, the form that starts at the weight is the exact one: with a decay of 0
// the shadow must become the weight, and shadow + (weight - shadow) loses what the larger one hides.
template <typename Shadow, typename Weight>
void lerp_span(void* shadow_bytes, const void* weight_bytes, std::int64_t size, double decay) {
  Shadow* __restrict shadow = static_cast<Shadow*>(shadow_bytes);
  const Weight* __restrict weight = static_cast<const Weight*>(weight_bytes);
  const Shadow step = static_cast<Shadow>(1.0 - decay);
  const Shadow keep = static_cast<Shadow>(decay);
  if (decay > 0.5) {
    for (std::int64_t i = 0; i < size; ++i) shadow[i] += step * (load(weight[i]) - shadow[i]);
  } else {
    for (std::int64_t i = 0; i < size; ++i) {
      const Shadow target = load(weight[i]);
      shadow[i] = target - keep * (target - shadow[i]);
    }
  }
}

using Span = void (*)(void* shadow, const void* weight, std::int64_t size, double decay);

// The loops for one instruction set. Another set is another table of the same functions, compiled with
// its flags, and chosen in spans().
struct Spans {
  Span by_type[4];  // indexed by WeightType
};

constexpr Spans portable_spans = {{
    lerp_span<float, float>,
    lerp_span<float, Bfloat16>,
    lerp_span<float, Float16>,
    lerp_span<double, double>,
}};

const Spans& spans() { return portable_spans; }

std::int64_t shadow_bytes(WeightType type) { return type == WeightType::float64 ? 8 : 4; }

std::int64_t weight_bytes(WeightType type) {
  switch (type) {
    case WeightType::float64: return 8;
    case WeightType::float32: return 4;
    default: return 2;
  }
}

struct Job {
  const EmaTensor* tensors;
  const std::vector<std::int64_t>& first_chunk;  // of each tensor, and one past the last of all
  double decay;
  const Spans& spans;
};

void update_chunk(const EmaTensor& tensor, std::int64_t begin, const Job& job) {
  const std::int64_t size = std::min(chunk_size, tensor.size - begin);
  char* shadow = static_cast<char*>(tensor.shadow) + begin * shadow_bytes(tensor.type);
  const char* weight = static_cast<const char*>(tensor.weight) + begin * weight_bytes(tensor.type);
  job.spans.by_type[static_cast<int>(tensor.type)](shadow, weight, size, job.decay);
}

void update_chunks(std::int64_t begin, std::int64_t end, void* context) {
  const Job& job = *static_cast<const Job*>(context);
  const auto& first = job.first_chunk;
  auto tensor = std::upper_bound(first.begin(), first.end(), begin) - first.begin() - 1;
  for (std::int64_t chunk = begin; chunk < end; ++chunk) {
    while (first[tensor + 1] <= chunk) ++tensor;  // empty tensors have no chunk
    update_chunk(job.tensors[tensor], (chunk - first[tensor]) * chunk_size, job);
  }
}

}  // namespace

void ema_update(const EmaTensor* tensors, std::int64_t count, double decay,
                ParallelFor parallel_for) {
  std::vector<std::int64_t> first_chunk(static_cast<std::size_t>(count) + 1, 0);
  for (std::int64_t i = 0; i < count; ++i) {
    first_chunk[i + 1] = first_chunk[i] + (tensors[i].size + chunk_size - 1) / chunk_size;
  }
  Job job{tensors, first_chunk, decay, spans()};
  parallel_for(first_chunk[count], chunks_per_task, update_chunks, &job);
}

}  // namespace ptrain
