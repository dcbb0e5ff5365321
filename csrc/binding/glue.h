// What every op's glue needs of torch's stable ABI: devices, types, memory, threads, and words for errors.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "../core/parallel.h"

namespace ptrain::glue {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using torch::stable::detail::StableLibrary;

// torch's own threads, as the kernels ask for them: no second pool beside it.
inline void torch_for(std::int64_t count, std::int64_t grain, RangeTask task, void* context) {
  if (count <= 0) return;
  if (torch_parallel_for(0, count, grain, task, context) != 0) {
    throw std::runtime_error("ptrain: torch's parallel_for failed");
  }
}

[[noreturn]] inline void fail(const std::string& message) { throw std::runtime_error(message); }

// What a message calls a type: the name that Python prints.
inline const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "torch.float32";
    case ScalarType::Double: return "torch.float64";
    case ScalarType::BFloat16: return "torch.bfloat16";
    case ScalarType::Half: return "torch.float16";
    case ScalarType::Long: return "torch.int64";
    case ScalarType::Int: return "torch.int32";
    case ScalarType::Short: return "torch.int16";
    case ScalarType::Char: return "torch.int8";
    case ScalarType::Byte: return "torch.uint8";
    case ScalarType::Bool: return "torch.bool";
    default: return "another type";
  }
}

inline std::string shape_of(const Tensor& tensor) {
  std::string text = "(";
  for (std::int64_t i = 0; i < tensor.dim(); ++i) {
    text += (i ? ", " : "") + std::to_string(tensor.size(i));
  }
  return text + (tensor.dim() == 1 ? ",)" : ")");
}

}  // namespace ptrain::glue
