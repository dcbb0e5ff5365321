// The gradient norm and the fused step of tables of tensors on a CUDA device.
#pragma once

#if PTRAIN_CUDA

#include <optional>

#include "../core/norm.h"
#include "../core/step.h"
#include "cuda.h"

#pragma GCC visibility push(hidden)

namespace ptrain::glue {

inline cuda::Type cuda_type(FloatType type) { return static_cast<cuda::Type>(type); }
static_assert(static_cast<int>(FloatType::float64) == static_cast<int>(cuda::Type::float64));
static_assert(static_cast<int>(FloatType::bfloat16) == static_cast<int>(cuda::Type::bfloat16));

// A 0-dim float64 tensor beside this one. The host does not wait.
inline Tensor norm_on_cuda(const char* op, const std::vector<NormTensor>& tensors, const Tensor& beside) {
  CudaCall call(op, beside);
  std::vector<cuda::NormRow> rows;
  rows.reserve(tensors.size());
  std::int64_t elements = 0;
  for (const NormTensor& tensor : tensors) {
    if (tensor.size == 0) continue;
    rows.push_back({tensor.data, tensor.size, 0, cuda_type(tensor.type), 0});
    elements += tensor.size;
  }
  const auto count = static_cast<std::int64_t>(rows.size());
  const std::int64_t chunk = cuda::chunk_size(elements);
  const std::int64_t chunks = cuda::number_chunks(rows.data(), count, chunk);
  const std::vector<std::int64_t> no_dimensions;
  Tensor norm = new_beside(beside, no_dimensions, ScalarType::Double);
  call.check(cuda::norm(call.upload(rows), count, chunks, chunk, call.room<double>(chunks),
                        static_cast<double*>(norm.mutable_data_ptr()), call.stream()));
  return norm;
}

// hyper  float64 [groups, 6], contiguous. On the device its values are read there; on the CPU they are those of
//        this moment, also in a captured graph
inline void step_on_cuda(const char* op, const std::vector<StepTensor>& tensors, const Tensor& beside,
                         const Tensor& hyper, const std::optional<Tensor>& norm, double max_norm,
                         bool zero_grads) {
  std::vector<cuda::StepRow> rows;
  rows.reserve(tensors.size());
  cuda::StepTypes types{false, false};
  std::int64_t elements = 0;
  for (const StepTensor& tensor : tensors) {
    rows.push_back({tensor.weight, tensor.gradient, tensor.exp_avg, tensor.exp_avg_sq, tensor.shadow, tensor.step,
                    tensor.size, 0, tensor.group, cuda_type(tensor.type), {}});
    elements += tensor.size;
    (tensor.type == FloatType::float64 ? types.float64 : types.others) = true;
  }
  if (rows.empty()) return;
  CudaCall call(op, beside);
  const auto count = static_cast<std::int64_t>(rows.size());
  const std::int64_t chunk = cuda::chunk_size(elements);
  const std::int64_t chunks = cuda::number_chunks(rows.data(), count, chunk);
  const double* settings = static_cast<const double*>(hyper.const_data_ptr());
  if (hyper.is_cpu()) {
    settings = call.upload(std::vector<double>(settings, settings + hyper.numel()));
  } else if (hyper.get_device_index() != call.device_index()) {
    fail({op, ": hyper is on another CUDA device than the parameters"});
  }
  const double* size = norm.has_value() ? on_device(call, *norm) : nullptr;
  call.check(cuda::step(call.upload(rows), count, chunks, chunk, types, settings, size, max_norm, zero_grads,
                        call.room<cuda::StepScalars>(count), call.stream()));
}

}  // namespace ptrain::glue

#pragma GCC visibility pop

#endif  // PTRAIN_CUDA
