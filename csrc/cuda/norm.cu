// The norm of all tensors: a sum of squares per chunk, then one block that adds those up in their order.
#include "device.cuh"

namespace ptrain::cuda {
namespace {

constexpr int norm_threads = 256;
constexpr int packs_in_flight = 4;
constexpr int final_threads = 1024;

// Which elements a thread adds, and in which order, is the same whether they come in packs or one by one:
// the bits do not depend on alignment.
template <typename T>
__device__ double sum_of_squares(const T* data, int size) {
  constexpr int width = 16 / sizeof(T);
  const int thread = static_cast<int>(threadIdx.x);
  const bool aligned = aligned_for_packs<width>(data);
  const int packs = size / width;
  double sum = 0.0;
  PTRAIN_NO_UNROLL
  for (int first = thread; first < packs; first += norm_threads * packs_in_flight) {
    Pack<T, width> loaded[packs_in_flight];
    PTRAIN_UNROLL
    for (int k = 0; k < packs_in_flight; ++k) {
      const int pack = first + k * norm_threads;
      if (pack < packs && aligned) {
        loaded[k] = load_pack<width>(data + pack * width);
      } else if (pack < packs) {
        PTRAIN_UNROLL
        for (int i = 0; i < width; ++i) loaded[k].at[i] = data[pack * width + i];
      }
    }
    PTRAIN_UNROLL
    for (int k = 0; k < packs_in_flight; ++k) {
      if (first + k * norm_threads < packs) {
        PTRAIN_UNROLL
        for (int i = 0; i < width; ++i) {
          const double x = widen(loaded[k].at[i]);
          sum = fma(x, x, sum);
        }
      }
    }
  }
  PTRAIN_NO_UNROLL
  for (int i = packs * width + thread; i < size; i += norm_threads) {
    const double x = widen(data[i]);
    sum = fma(x, x, sum);
  }
  return sum;
}

__global__ void __launch_bounds__(norm_threads)
    partials_kernel(const NormRow* rows, std::int64_t count, std::int64_t elements_per_chunk, double* partials) {
  const std::int32_t chunk = static_cast<std::int32_t>(blockIdx.x);
  const NormRow row = rows[row_of_chunk(rows, count, chunk)];
  const Span span = span_of_chunk(row, chunk, elements_per_chunk);
  double sum = 0.0;
  switch (row.type) {
    case Type::float32: sum = sum_of_squares(static_cast<const float*>(row.data) + span.begin, span.size); break;
    case Type::bfloat16: sum = sum_of_squares(static_cast<const Bfloat16*>(row.data) + span.begin, span.size); break;
    case Type::float16: sum = sum_of_squares(static_cast<const Float16*>(row.data) + span.begin, span.size); break;
    case Type::float64: sum = sum_of_squares(static_cast<const double*>(row.data) + span.begin, span.size); break;
    case Type::bytes: break;
  }
  sum = sum_of_block(sum);
  if (threadIdx.x == 0) partials[chunk] = sum;
}

__global__ void __launch_bounds__(final_threads)
    norm_kernel(const double* partials, std::int64_t chunks, double* norm) {
  double sum = 0.0;
  for (std::int64_t i = threadIdx.x; i < chunks; i += final_threads) sum += partials[i];
  sum = sum_of_block(sum);
  if (threadIdx.x == 0) *norm = sqrt(sum);
}

}  // namespace

Failure norm(const NormRow* rows, std::int64_t count, std::int64_t chunks, std::int64_t elements_per_chunk,
             double* partials, double* norm, Stream stream) {
  const Failure failure =
      launch(partials_kernel, chunks, norm_threads, stream, rows, count, elements_per_chunk, partials);
  if (failure != nullptr) return failure;
  return launch(norm_kernel, std::int64_t{1}, final_threads, stream, static_cast<const double*>(partials), chunks,
                norm);
}

}  // namespace ptrain::cuda
