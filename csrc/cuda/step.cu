// Clipping, AdamW and the moving average in one pass: a thread per tensor counts, then a block per chunk works.
#include "device.cuh"

namespace ptrain::cuda {
namespace {

constexpr int step_threads = 128;
constexpr int tensors_per_block = 64;

__device__ inline Blend blend(double weight) {
  return weight < 0.5 ? Blend{weight, 1.0} : Blend{weight - 1.0, 0.0};
}

__global__ void __launch_bounds__(tensors_per_block)
    scalars_kernel(const StepRow* rows, std::int64_t count, const double* hyper, const double* norm, double max_norm,
                   StepScalars* scalars) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * tensors_per_block + threadIdx.x;
  if (i >= count) return;
  const StepRow row = rows[i];
  const double size = norm == nullptr ? 0.0 : *norm;
  StepScalars out{};
  out.go = size - size == 0.0 ? 1.0 : 0.0;  // infinity and NaN less themselves are NaN
  if (out.go != 0.0) {
    double t = 1.0;  // a tensor without a gradient keeps its count, and needs no correction
    if (row.gradient != nullptr) {
      const float step = *row.step + 1.0f;  // torch counts in float32 too
      *row.step = step;
      t = step;
    }
    const double* of_group = hyper + static_cast<std::int64_t>(row.group) * hyper_columns;
    const double lr = of_group[hyper_lr], beta1 = of_group[hyper_beta1], beta2 = of_group[hyper_beta2];
    const double bound = max_norm / (size + 1e-6);
    out.clip = norm != nullptr && max_norm > 0.0 && bound < 1.0 ? bound : 1.0;
    out.keep_weight = 1.0 - lr * of_group[hyper_weight_decay];
    out.step_size = lr / (1.0 - pow(beta1, t));
    out.beta2 = beta2;
    out.one_minus_beta2 = 1.0 - beta2;
    out.root_correction = 1.0 / sqrt(1.0 - pow(beta2, t));
    out.eps = of_group[hyper_eps];
    out.exp_avg = blend(1.0 - beta1);
    out.shadow = blend(1.0 - of_group[hyper_decay]);
  }
  scalars[i] = out;
}

template <typename T>
struct Blender {
  T factor;
  bool from_old;

  __device__ explicit Blender(const Blend& blend)
      : factor(static_cast<T>(blend.factor)), from_old(blend.from_old != 0.0) {}

  __device__ T operator()(T old, T fresh) const { return (from_old ? old : fresh) + factor * (fresh - old); }
};

// The step of one element; State is float, or double for float64.
template <typename Value, typename State>
struct Stepper {
  State clip, keep_weight, step_size, beta2, one_minus_beta2, root_correction, eps;
  Blender<State> to_exp_avg, to_shadow;

  __device__ explicit Stepper(const StepScalars& scalars)
      : clip(static_cast<State>(scalars.clip)),
        keep_weight(static_cast<State>(scalars.keep_weight)),
        step_size(static_cast<State>(scalars.step_size)),
        beta2(static_cast<State>(scalars.beta2)),
        one_minus_beta2(static_cast<State>(scalars.one_minus_beta2)),
        root_correction(static_cast<State>(scalars.root_correction)),
        eps(static_cast<State>(scalars.eps)),
        to_exp_avg(scalars.exp_avg),
        to_shadow(scalars.shadow) {}

  __device__ void step(Value& value, Value gradient, State& exp_avg, State& exp_avg_sq) const {
    const State g = clip * widen(gradient);
    exp_avg = to_exp_avg(exp_avg, g);
    exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * g * g;
    const State denominator = sqrt(exp_avg_sq) * root_correction + eps;
    value = Narrow<Value>::of(keep_weight * widen(value) - step_size * exp_avg / denominator);
  }

  // The average takes the weight as it was written, rounded.
  __device__ void average(State& shadow, Value value) const { shadow = to_shadow(shadow, widen(value)); }
};

// begin counts from the tensor's first element. Pointers that are null stay so.
template <typename T>
__device__ T* at(void* start, std::int64_t begin) {
  return start == nullptr ? nullptr : static_cast<T*>(start) + begin;
}

template <typename Value, typename State>
__device__ void step_chunk(const StepRow& row, const Span& span, const StepScalars& scalars, bool zero_gradients) {
  constexpr int width = 16 / sizeof(State);
  if (scalars.go == 0.0) {
    Value* const gradient = at<Value>(row.gradient, span.begin);
    if (!zero_gradients || gradient == nullptr) return;
    for (int i = static_cast<int>(threadIdx.x); i < span.size; i += step_threads) gradient[i] = Value{};
    return;
  }
  const Stepper<Value, State> stepper(scalars);
  Value* const value = at<Value>(row.parameter, span.begin);
  Value* const gradient = at<Value>(row.gradient, span.begin);
  State* const exp_avg = at<State>(row.exp_avg, span.begin);
  State* const exp_avg_sq = at<State>(row.exp_avg_sq, span.begin);
  State* const shadow = at<State>(row.shadow, span.begin);
  const bool steps = gradient != nullptr, averages = shadow != nullptr;
  if (!steps && !averages) return;

  // Null counts as aligned. Up to five packs of 16 bytes per thread are in flight.
  const bool aligned = aligned_for_packs<width>(value) && aligned_for_packs<width>(gradient) &&
                       aligned_for_packs<width>(exp_avg) && aligned_for_packs<width>(exp_avg_sq) &&
                       aligned_for_packs<width>(shadow);
  const int thread = static_cast<int>(threadIdx.x);
  const int packs = aligned ? span.size / width : 0;
  PTRAIN_NO_UNROLL
  for (int pack = thread; pack < packs; pack += step_threads) {
    const int first = pack * width;
    Pack<Value, width> values = load_pack<width>(value + first);
    Pack<State, width> shadows{};
    if (averages) shadows = load_pack<width>(shadow + first);
    if (steps) {
      Pack<Value, width> gradients = load_pack<width>(gradient + first);
      Pack<State, width> m = load_pack<width>(exp_avg + first);
      Pack<State, width> v = load_pack<width>(exp_avg_sq + first);
      PTRAIN_UNROLL
      for (int i = 0; i < width; ++i) stepper.step(values.at[i], gradients.at[i], m.at[i], v.at[i]);
      store_pack<width>(value + first, values);
      store_pack<width>(exp_avg + first, m);
      store_pack<width>(exp_avg_sq + first, v);
      if (zero_gradients) store_pack<width>(gradient + first, Pack<Value, width>{});
    }
    if (averages) {
      PTRAIN_UNROLL
      for (int i = 0; i < width; ++i) stepper.average(shadows.at[i], values.at[i]);
      store_pack<width>(shadow + first, shadows);
    }
  }
  PTRAIN_NO_UNROLL
  for (int i = packs * width + thread; i < span.size; i += step_threads) {
    Value x = value[i];
    if (steps) {
      stepper.step(x, gradient[i], exp_avg[i], exp_avg_sq[i]);
      value[i] = x;
      if (zero_gradients) gradient[i] = Value{};
    }
    if (averages) stepper.average(shadow[i], x);
  }
}

// One kernel for states in float and one for float64: together they would need half again as many registers.
template <typename State>
__global__ void __launch_bounds__(step_threads, 5)
    step_kernel(const StepRow* rows, std::int64_t count, std::int64_t elements_per_chunk, const StepScalars* scalars,
                bool zero_gradients) {
  const std::int32_t chunk = static_cast<std::int32_t>(blockIdx.x);
  const std::int64_t i = row_of_chunk(rows, count, chunk);
  const StepRow row = rows[i];
  const StepScalars& shared = scalars[i];
  const Span span = span_of_chunk(row, chunk, elements_per_chunk);
  if constexpr (sizeof(State) == 8) {
    if (row.type == Type::float64) step_chunk<double, double>(row, span, shared, zero_gradients);
  } else {
    if (row.type == Type::float32) step_chunk<float, float>(row, span, shared, zero_gradients);
    if (row.type == Type::bfloat16) step_chunk<Bfloat16, float>(row, span, shared, zero_gradients);
    if (row.type == Type::float16) step_chunk<Float16, float>(row, span, shared, zero_gradients);
  }
}

}  // namespace

Failure step(const StepRow* rows, std::int64_t count, std::int64_t chunks, std::int64_t elements_per_chunk,
             StepTypes types, const double* hyper, const double* norm, double max_norm, bool zero_gradients,
             StepScalars* scalars, Stream stream) {
  const StepScalars* formed = scalars;
  Failure failure = launch(scalars_kernel, (count + tensors_per_block - 1) / tensors_per_block, tensors_per_block,
                           stream, rows, count, hyper, norm, max_norm, scalars);
  if (failure == nullptr && types.others) {
    failure = launch(step_kernel<float>, chunks, step_threads, stream, rows, count, elements_per_chunk, formed,
                     zero_gradients);
  }
  if (failure == nullptr && types.float64) {
    failure = launch(step_kernel<double>, chunks, step_threads, stream, rows, count, elements_per_chunk, formed,
                     zero_gradients);
  }
  return failure;
}

}  // namespace ptrain::cuda
