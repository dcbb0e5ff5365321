// The moving average of a table of flat pairs on a CUDA device.
#pragma once

#if PTRAIN_CUDA

#include "../core/ema.h"
#include "cuda.h"

#pragma GCC visibility push(hidden)

namespace ptrain::glue {

inline cuda::EmaRow cuda_row(const EmaTensor& pair) {
  cuda::EmaRow row{pair.shadow, pair.weight, pair.size, 0, cuda::Type::bytes};
  switch (pair.type) {
    case WeightType::float32: row.type = cuda::Type::float32; break;
    case WeightType::bfloat16: row.type = cuda::Type::bfloat16; break;
    case WeightType::float16: row.type = cuda::Type::float16; break;
    case WeightType::float64: row.type = cuda::Type::float64; break;
    case WeightType::copy8: break;
    case WeightType::copy16: row.size *= 2; break;
    case WeightType::copy32: row.size *= 4; break;
    case WeightType::copy64: row.size *= 8; break;
  }
  return row;
}

// decay_on_device: one float64 on the pairs' device that is read there in place of decay, or null.
inline void ema_update_on_cuda(const char* op, const std::vector<EmaTensor>& pairs, const Tensor& beside,
                               double decay, const Tensor* decay_on_device) {
  std::vector<cuda::EmaRow> rows;
  rows.reserve(pairs.size());
  std::int64_t elements = 0;
  for (const EmaTensor& pair : pairs) {
    if (pair.size == 0) continue;
    rows.push_back(cuda_row(pair));
    elements += pair.size;
  }
  if (rows.empty()) return;
  CudaCall call(op, beside);
  const auto count = static_cast<std::int64_t>(rows.size());
  const std::int64_t chunk = cuda::chunk_size(elements);
  const std::int64_t chunks = cuda::number_chunks(rows.data(), count, chunk);
  const double* from = decay_on_device == nullptr ? nullptr : on_device(call, *decay_on_device);
  call.check(cuda::ema_update(call.upload(rows), count, chunks, chunk, decay, from, call.stream()));
}

}  // namespace ptrain::glue

#pragma GCC visibility pop

#endif  // PTRAIN_CUDA
