// The moving average: the tensors' elements are one row, cut into equal ranges and then into flat loops.
#include "ema.h"

// The loops are written in vectors. -O3 finds nothing more in them, and takes longer.
#if defined(__GNUC__) && !defined(__clang__) && defined(__OPTIMIZE__)
#pragma GCC optimize("O2")
#endif

#include <cstring>

// GCC has the two instructions as builtins, and its <immintrin.h> takes a third of this file's time.
#if defined(__GNUC__) && !defined(__clang__)
#define PTRAIN_GCC 1
#else
#define PTRAIN_GCC 0
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#endif

#include "each_isa.h"
#include "numeric.h"
#include "small.h"

// Keeps a product from being fused with the sum that follows, under any -ffp-contract. Where there is but
// one instruction set there is nothing to agree with.
#if PTRAIN_X86_ISAS
#define PTRAIN_ROUND(value) __asm__("" : "+x"(value))
#else
#define PTRAIN_ROUND(value) (void)(value)
#endif

namespace ptrain {
namespace {

// The row is cut at multiples of 64 elements, four cache lines or more of shadow.
constexpr std::int64_t cut = 64;
// 32 Ki elements take about 10 us: less is not worth waking a thread for.
constexpr std::int64_t cuts_per_task = 32 * 1024 / cut;

// How weights of a type are read, one at a time.
struct Float32Weight {
  using Stored = float;
  using Shadow = float;
  static float one(const Stored* from) { return *from; }
};
struct Float64Weight {
  using Stored = double;
  using Shadow = double;
  static double one(const Stored* from) { return *from; }
};
struct Bfloat16Weight {
  using Stored = std::uint16_t;
  using Shadow = float;
  static float one(const Stored* from) { return float_from_bfloat16(*from); }
};
struct Float16Weight {
  using Stored = std::uint16_t;
  using Shadow = float;
  static float one(const Stored* from) { return float_from_float16(*from); }
};

template <bool from_shadow, typename Weight>
inline void update_one(typename Weight::Shadow* shadow, typename Weight::Shadow target,
                       typename Weight::Shadow factor) {
  typename Weight::Shadow product = factor * (target - *shadow);
  PTRAIN_ROUND(product);
  *shadow = from_shadow ? *shadow + product : target - product;
}

using Span = void (*)(void* shadow, const void* weight, std::int64_t size, double factor);
using EmaSpans = Span[4];  // indexed by WeightType

}  // namespace
}  // namespace ptrain

#define PTRAIN_SPANS "ema_spans.inl"
#include "for_each_isa.inl"

namespace ptrain {
namespace {

constexpr std::int64_t shadow_bytes[] = {4, 4, 4, 8, 1, 2, 4, 8};  // indexed by WeightType
constexpr std::int64_t weight_bytes[] = {4, 2, 2, 8, 1, 2, 4, 8};

struct Job {
  const EmaTensor* tensors;
  const std::int64_t* starts;
  std::int64_t count;
  bool from_shadow;  // which of the two forms
  double factor;     // of the difference: 1 - decay from the shadow, decay from the weight
  const EmaSpans& spans;
};

// A row of a tensor that is not flat: elements that lie at equal distances.
template <bool from_shadow, typename Weight>
void strided_row(void* shadow_start, const void* weight_start, const EmaDimension& row,
                 double factor_double) {
  auto* shadow = static_cast<typename Weight::Shadow*>(shadow_start);
  const auto* weight = static_cast<const typename Weight::Stored*>(weight_start);
  const auto factor = static_cast<typename Weight::Shadow>(factor_double);
  for (std::int64_t i = 0; i < row.size; ++i) {
    update_one<from_shadow, Weight>(shadow + i * row.shadow_stride,
                                    Weight::one(weight + i * row.weight_stride), factor);
  }
}

template <bool /*from_shadow*/, int bytes>
void strided_copy(void* shadow, const void* weight, const EmaDimension& row, double /*factor*/) {
  for (std::int64_t i = 0; i < row.size; ++i) {
    std::memcpy(static_cast<char*>(shadow) + i * row.shadow_stride * bytes,
                static_cast<const char*>(weight) + i * row.weight_stride * bytes, bytes);
  }
}

using Row = void (*)(void* shadow, const void* weight, const EmaDimension& row, double factor);

template <bool from_shadow>
constexpr Row rows[] = {
    strided_row<from_shadow, Float32Weight>, strided_row<from_shadow, Bfloat16Weight>,
    strided_row<from_shadow, Float16Weight>, strided_row<from_shadow, Float64Weight>,
    strided_copy<from_shadow, 1>,            strided_copy<from_shadow, 2>,
    strided_copy<from_shadow, 4>,            strided_copy<from_shadow, 8>,
};

void update_strided(const EmaTensor& tensor, std::int64_t begin, std::int64_t end, const Job& job) {
  const EmaLayout& layout = *tensor.layout;
  const int type = static_cast<int>(tensor.type);
  const Row row_of_type = job.from_shadow ? rows<true>[type] : rows<false>[type];
  for (std::int64_t at = begin; at < end;) {
    EmaDimension row = layout.back();
    std::int64_t rest = at, shadow = 0, weight = 0, in_row = 0;
    for (auto dimension = layout.rbegin(); dimension != layout.rend(); ++dimension) {
      const std::int64_t index = rest % dimension->size;
      rest /= dimension->size;
      shadow += index * dimension->shadow_stride;
      weight += index * dimension->weight_stride;
      if (dimension == layout.rbegin()) in_row = index;
    }
    row.size = smaller_of(row.size - in_row, end - at);
    row_of_type(static_cast<char*>(tensor.shadow) + shadow * shadow_bytes[type],
                static_cast<const char*>(tensor.weight) + weight * weight_bytes[type], row,
                job.factor);
    at += row.size;
  }
}

void update_part(const EmaTensor& tensor, std::int64_t begin, std::int64_t end, const Job& job) {
  if (tensor.layout != nullptr) return update_strided(tensor, begin, end, job);
  const int type = static_cast<int>(tensor.type);
  char* shadow = static_cast<char*>(tensor.shadow) + begin * shadow_bytes[type];
  const char* weight = static_cast<const char*>(tensor.weight) + begin * weight_bytes[type];
  if (type < 4) {
    job.spans[type](shadow, weight, end - begin, job.factor);
  } else {
    std::memcpy(shadow, weight, static_cast<std::size_t>((end - begin) * shadow_bytes[type]));
  }
}

// The elements [begin * cut, end * cut) of the row. Inside a tensor the cut moves down to a multiple of 64
// from the tensor's own start, for both threads alike, so that both work on whole cache lines.
void update_range(std::int64_t begin, std::int64_t end, void* context) {
  const Job& job = *static_cast<const Job*>(context);
  const std::int64_t first = begin * cut, last = smaller_of(end * cut, job.starts[job.count]);
  std::int64_t t = first_above(job.starts, job.count + 1, first) - 1;
  for (; t < job.count && job.starts[t] < last; ++t) {
    const EmaTensor& tensor = job.tensors[t];
    const std::int64_t from = larger_of<std::int64_t>(first - job.starts[t], 0) / cut * cut;
    std::int64_t to = last - job.starts[t];
    to = to >= tensor.size ? tensor.size : to / cut * cut;
    if (from < to) update_part(tensor, from, to, job);
  }
}

}  // namespace

EmaLayout ema_layout(const std::int64_t* sizes, const std::int64_t* shadow_strides,
                     const std::int64_t* weight_strides, std::int64_t dimensions) {
  EmaLayout sorted;
  for (std::int64_t d = 0; d < dimensions; ++d) {
    if (sizes[d] == 0) return {};
    if (sizes[d] == 1) continue;
    auto place = sorted.end();  // dimensions are few, and mostly in order
    while (place != sorted.begin() && place[-1].shadow_stride < shadow_strides[d]) --place;
    sorted.insert(place, {sizes[d], shadow_strides[d], weight_strides[d]});
  }
  EmaLayout joined;
  for (const EmaDimension& inner : sorted) {
    if (!joined.empty()) {
      EmaDimension& outer = joined.back();
      if (outer.shadow_stride == inner.shadow_stride * inner.size &&
          outer.weight_stride == inner.weight_stride * inner.size) {
        outer = {outer.size * inner.size, inner.shadow_stride, inner.weight_stride};
        continue;
      }
    }
    joined.push_back(inner);
  }
  const bool flat = joined.size() == 1 && joined[0].shadow_stride == 1 && joined[0].weight_stride == 1;
  return flat ? EmaLayout{} : joined;
}

bool overlaps_itself(const EmaLayout& layout) {
  std::int64_t reach = 0;  // from the first element of the inner dimensions to their last
  for (auto dimension = layout.rbegin(); dimension != layout.rend(); ++dimension) {
    if (dimension->shadow_stride <= reach) return true;
    reach += (dimension->size - 1) * dimension->shadow_stride;
  }
  return false;
}

std::vector<std::int64_t> ema_starts(const EmaTensor* tensors, std::int64_t count) {
  std::vector<std::int64_t> starts(static_cast<std::size_t>(count) + 1, 0);
  for (std::int64_t t = 0; t < count; ++t) starts[t + 1] = starts[t] + tensors[t].size;
  return starts;
}

void ema_update(const EmaTensor* tensors, const std::int64_t* starts, std::int64_t count,
                double decay, ParallelFor parallel_for) {
  const bool from_shadow = decay > 0.5;
  const Job job{tensors, starts, count, from_shadow, from_shadow ? 1.0 - decay : decay,
                *PTRAIN_PICK(ema_spans)[from_shadow]};
  parallel_for((starts[count] + cut - 1) / cut, cuts_per_task, update_range,
               const_cast<Job*>(&job));
}

}  // namespace ptrain
