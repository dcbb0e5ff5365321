// The step: tensors laid end to end, each thread takes one stretch of all elements, in ascending order.
#include "step.h"

#include <cstring>

#include "each_isa.h"
#include "step_ranges.h"

namespace ptrain {

// old + weight * (new - old), as torch.lerp: from the nearer end, so that a weight of 1 gives exactly new.
struct Blend {
  bool from_old = false;
  double factor = 0.0;  // from_old ? weight : weight - 1

  Blend() = default;
  explicit Blend(double weight) : from_old(weight < 0.5), factor(from_old ? weight : weight - 1.0) {}
};

// What every element of a tensor shares, worked out once for all tensors of a group at the same count.
struct StepScalars {
  double clip;
  double keep_weight;  // 1 - lr * weight_decay
  double step_size;    // lr / (1 - beta1^t)
  double beta2;
  double one_minus_beta2;
  double root_correction;  // 1 / sqrt(1 - beta2^t)
  double eps;
  Blend exp_avg;
  Blend shadow;
};

struct StepSpan {
  void* weight;
  void* gradient;
  void* exp_avg;
  void* exp_avg_sq;
  void* shadow;
  std::int64_t size;
};

using StepLoop = void (*)(const StepSpan& span, const StepScalars& scalars);

struct StepLoops {
  StepLoop step;
  StepLoop step_and_average;
  StepLoop average;
};

}  // namespace ptrain

#define PTRAIN_SPANS "step_spans.inl"
#include "for_each_isa.inl"

namespace ptrain {
namespace {

// 32 Ki elements take about 10 us: less is not worth waking a thread for.
constexpr std::int64_t elements_per_task = 32 * 1024;
// So many elements are stepped before their gradients are zeroed: all five parts of them, 80 KiB in
// float32, are then still in the second-level cache.
constexpr std::int64_t elements_per_zeroing = 4 * 1024;

StepScalars scalars_of(const StepGroup& group, double step, double clip) {
  return {
      clip,
      1.0 - group.learning_rate * group.weight_decay,
      group.learning_rate / (1.0 - __builtin_pow(group.beta1, step)),
      group.beta2,
      1.0 - group.beta2,
      1.0 / __builtin_sqrt(1.0 - __builtin_pow(group.beta2, step)),
      group.eps,
      Blend(1.0 - group.beta1),
      Blend(1.0 - group.average_decay),
  };
}

struct Job {
  const StepTensor* tensors;
  const Array<std::int64_t>& starts;
  const Array<StepScalars>& scalars;
  const Array<std::int32_t>& scalars_of_tensor;
  const StepLoops* loops;
  bool zero_gradients;
};

void* moved(void* start, std::int64_t elements, std::int64_t bytes) {
  return start == nullptr ? nullptr : static_cast<char*>(start) + elements * bytes;
}

void step_stretch(const StepTensor& tensor, const StepScalars& scalars, std::int64_t begin,
                  std::int64_t end, const Job& job) {
  const std::int64_t value_bytes = bytes_of(tensor.type);
  const std::int64_t state_bytes = tensor.type == FloatType::float64 ? 8 : 4;
  const StepLoops& loops = job.loops[static_cast<int>(tensor.type)];
  const bool zero = job.zero_gradients && tensor.gradient != nullptr;
  const StepLoop loop = tensor.gradient == nullptr ? loops.average
                        : tensor.shadow == nullptr ? loops.step
                                                   : loops.step_and_average;
  if (tensor.gradient == nullptr && tensor.shadow == nullptr) return;
  const std::int64_t stride = zero ? elements_per_zeroing : end - begin;
  for (; begin < end; begin += stride) {
    const std::int64_t size = smaller_of(stride, end - begin);
    const StepSpan span{
        moved(tensor.weight, begin, value_bytes),     moved(tensor.gradient, begin, value_bytes),
        moved(tensor.exp_avg, begin, state_bytes),    moved(tensor.exp_avg_sq, begin, state_bytes),
        moved(tensor.shadow, begin, state_bytes),     size,
    };
    loop(span, scalars);
    if (zero) std::memset(span.gradient, 0, static_cast<std::size_t>(size * value_bytes));
  }
}

// begin and end count pieces of range_alignment elements.
void step_pieces(std::int64_t begin, std::int64_t end, void* context) {
  const Job& job = *static_cast<const Job*>(context);
  for_each_span(job.starts, begin * range_alignment, end * range_alignment,
                [&](std::int64_t i, std::int64_t first, std::int64_t last) {
                  const StepTensor& tensor = job.tensors[i];
                  const StepScalars& scalars = job.scalars[job.scalars_of_tensor[i]];
                  step_stretch(tensor, scalars, first, smaller_of(last, tensor.size), job);
                });
}

}  // namespace

double clip_factor(double norm, double max_norm) {
  return max_norm > 0.0 ? __builtin_fmin(1.0, max_norm / (norm + 1e-6)) : 1.0;
}

void fused_step(const StepTensor* tensors, std::int64_t count, const StepGroup* groups, double clip,
                bool zero_gradients, ParallelFor parallel_for) {
  // Neighbours mostly share their group and their count: two powers for all of them, not for each.
  Array<std::int32_t> scalars_of_tensor(count);
  std::int32_t last = -1, last_group = -1;
  float last_step = -1.0f;
  for (std::int64_t i = 0; i < count; ++i) {
    const StepTensor& tensor = tensors[i];
    float step = 1.0f;
    if (tensor.gradient != nullptr) {
      step = *tensor.step + 1.0f;  // torch counts in float32 too
      *tensor.step = step;
    }
    const bool shared = tensor.group == last_group && (tensor.gradient == nullptr || step == last_step);
    if (!shared) {
      ++last;
      last_group = tensor.group;
      last_step = step;
    }
    scalars_of_tensor[i] = last;
  }
  Array<StepScalars> scalars(last + 1);
  for (std::int64_t i = 0; i < count; ++i) {
    if (i > 0 && scalars_of_tensor[i] == scalars_of_tensor[i - 1]) continue;
    const float step = tensors[i].gradient != nullptr ? *tensors[i].step : 1.0f;
    scalars[scalars_of_tensor[i]] = scalars_of(groups[tensors[i].group], step, clip);
  }
  const auto starts = lay_end_to_end(count, [&](std::int64_t i) { return tensors[i].size; });
  Job job{tensors, starts, scalars, scalars_of_tensor, PTRAIN_PICK(step_table), zero_gradients};
  parallel_for(starts.back() / range_alignment, elements_per_task / range_alignment, step_pieces, &job);
}

}  // namespace ptrain
