// The moving average of all tensors in one launch: a block of threads per chunk.
#include "device.cuh"

namespace ptrain::cuda {
namespace {

constexpr int ema_threads = 256;

// One element. From a step of one half on, the form that starts at the weight is the exact one: with a decay
// of 0 the shadow becomes the weight. Product and sum are rounded apart, as torch.lerp on a CPU does.
template <typename T>
struct Mover {
  bool from_shadow;
  T factor;

  __device__ explicit Mover(double decay)
      : from_shadow(decay > 0.5), factor(static_cast<T>(from_shadow ? 1.0 - decay : decay)) {}

  __device__ T operator()(T shadow, T weight) const {
    const T way = rounded_product(factor, weight - shadow);
    return from_shadow ? shadow + way : weight - way;
  }
};

template <typename Shadow, typename Weight>
__device__ void update(Shadow* shadow, const Weight* weight, int size, double decay) {
  constexpr int width = 16 / sizeof(Shadow);
  constexpr int packs_in_flight = sizeof(Shadow) == 8 ? 2 : 4;
  const Mover<Shadow> moved(decay);
  const int thread = static_cast<int>(threadIdx.x);
  const bool aligned = aligned_for_packs<width>(shadow) && aligned_for_packs<width>(weight);
  const int packs = aligned ? size / width : 0;
  PTRAIN_NO_UNROLL
  for (int first = thread; first < packs; first += ema_threads * packs_in_flight) {
    Pack<Shadow, width> shadows[packs_in_flight];
    Pack<Weight, width> weights[packs_in_flight];
    PTRAIN_UNROLL
    for (int k = 0; k < packs_in_flight; ++k) {
      const int pack = first + k * ema_threads;
      if (pack < packs) {
        shadows[k] = load_pack<width>(shadow + pack * width);
        weights[k] = load_pack<width>(weight + pack * width);
      }
    }
    PTRAIN_UNROLL
    for (int k = 0; k < packs_in_flight; ++k) {
      const int pack = first + k * ema_threads;
      if (pack < packs) {
        PTRAIN_UNROLL
        for (int i = 0; i < width; ++i) shadows[k].at[i] = moved(shadows[k].at[i], widen(weights[k].at[i]));
        store_pack<width>(shadow + pack * width, shadows[k]);
      }
    }
  }
  PTRAIN_NO_UNROLL
  for (int i = packs * width + thread; i < size; i += ema_threads) {
    shadow[i] = moved(shadow[i], widen(weight[i]));
  }
}

// What is not averaged, as integers are.
__device__ void copy(unsigned char* shadow, const unsigned char* weight, int size) {
  const int thread = static_cast<int>(threadIdx.x);
  const int packs = aligned_for_packs<16>(shadow) && aligned_for_packs<16>(weight) ? size / 16 : 0;
  PTRAIN_NO_UNROLL
  for (int pack = thread; pack < packs; pack += ema_threads) {
    store_pack<16>(shadow + pack * 16, load_pack<16>(weight + pack * 16));
  }
  PTRAIN_NO_UNROLL
  for (int i = packs * 16 + thread; i < size; i += ema_threads) shadow[i] = weight[i];
}

__global__ void __launch_bounds__(ema_threads, 4)
    ema_kernel(const EmaRow* rows, std::int64_t count, std::int64_t elements_per_chunk, double decay,
               const double* decay_on_device) {
  const std::int32_t chunk = static_cast<std::int32_t>(blockIdx.x);
  const EmaRow row = rows[row_of_chunk(rows, count, chunk)];
  const Span span = span_of_chunk(row, chunk, elements_per_chunk);
  if (decay_on_device != nullptr) decay = *decay_on_device;
  switch (row.type) {
    case Type::float32:
      return update(static_cast<float*>(row.shadow) + span.begin, static_cast<const float*>(row.weight) + span.begin,
                    span.size, decay);
    case Type::bfloat16:
      return update(static_cast<float*>(row.shadow) + span.begin,
                    static_cast<const Bfloat16*>(row.weight) + span.begin, span.size, decay);
    case Type::float16:
      return update(static_cast<float*>(row.shadow) + span.begin, static_cast<const Float16*>(row.weight) + span.begin,
                    span.size, decay);
    case Type::float64:
      return update(static_cast<double*>(row.shadow) + span.begin, static_cast<const double*>(row.weight) + span.begin,
                    span.size, decay);
    case Type::bytes:
      return copy(static_cast<unsigned char*>(row.shadow) + span.begin,
                  static_cast<const unsigned char*>(row.weight) + span.begin, span.size);
  }
}

}  // namespace

Failure ema_update(const EmaRow* rows, std::int64_t count, std::int64_t chunks, std::int64_t elements_per_chunk,
                   double decay, const double* decay_on_device, Stream stream) {
  return launch(ema_kernel, chunks, ema_threads, stream, rows, count, elements_per_chunk, decay,
                decay_on_device);
}

}  // namespace ptrain::cuda
