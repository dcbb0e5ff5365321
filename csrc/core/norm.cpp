// The norm: fixed chunks of all tensors laid end to end, each with 32 running sums in double.
#include "norm.h"

#include <cstring>

#include "each_isa.h"
#include "step_ranges.h"

namespace ptrain {

using AddSquares = void (*)(const void* data, std::int64_t size, double* sums);

}  // namespace ptrain

#define PTRAIN_SPANS "norm_spans.inl"
#include "for_each_isa.inl"

namespace ptrain {
namespace {

constexpr std::int64_t chunk_size = 16 * 1024;  // elements, a multiple of range_alignment
constexpr std::int64_t chunks_per_task = 2;     // less than 32 Ki elements is not worth a thread
constexpr int sums_per_chunk = 32;

struct Job {
  const NormTensor* tensors;
  const Array<std::int64_t>& starts;
  const AddSquares* add_squares;
  double* of_chunk;
};

double added_in_order(const double* values, std::int64_t count) {
  double sum = 0.0;
  for (std::int64_t i = 0; i < count; ++i) sum += values[i];
  return sum;
}

void sum_chunk(std::int64_t chunk, const Job& job) {
  double sums[sums_per_chunk] = {};
  const std::int64_t begin = chunk * chunk_size;
  const std::int64_t end = smaller_of(begin + chunk_size, job.starts.back());
  for_each_span(job.starts, begin, end, [&](std::int64_t i, std::int64_t first, std::int64_t last) {
    const NormTensor& tensor = job.tensors[i];
    const char* data = static_cast<const char*>(tensor.data) + first * bytes_of(tensor.type);
    const std::int64_t size = smaller_of(last, tensor.size) - first;
    job.add_squares[static_cast<int>(tensor.type)](data, size, sums);
  });
  job.of_chunk[chunk] = added_in_order(sums, sums_per_chunk);
}

void sum_chunks(std::int64_t begin, std::int64_t end, void* context) {
  const Job& job = *static_cast<const Job*>(context);
  for (std::int64_t chunk = begin; chunk < end; ++chunk) sum_chunk(chunk, job);
}

}  // namespace

double sum_of_squares(const NormTensor* tensors, std::int64_t count, ParallelFor parallel_for) {
  const auto starts = lay_end_to_end(count, [&](std::int64_t i) { return tensors[i].size; });
  const std::int64_t chunks = (starts.back() + chunk_size - 1) / chunk_size;
  Array<double> of_chunk(chunks);
  Job job{tensors, starts, PTRAIN_PICK(norm_table), of_chunk.data()};
  parallel_for(chunks, chunks_per_task, sum_chunks, &job);
  return added_in_order(of_chunk.data(), chunks);
}

}  // namespace ptrain
