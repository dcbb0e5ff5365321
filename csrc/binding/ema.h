// The moving average as ops: `ema_update_` of two lists of tensors.
#pragma once

#include <vector>

#include "../core/ema.h"
#include "glue.h"

namespace ptrain::glue {

inline void define_ema(StableLibrary& m) {
  m.def("ema_update_(Tensor(a!)[] shadows, Tensor[] weights, float decay) -> ()");
}

inline WeightType weight_type(const Tensor& weight) {
  switch (weight.scalar_type()) {
    case ScalarType::Float: return WeightType::float32;
    case ScalarType::BFloat16: return WeightType::bfloat16;
    case ScalarType::Half: return WeightType::float16;
    case ScalarType::Double: return WeightType::float64;
    default: fail(std::string("ema_update_: weights of ") + name_of(weight.scalar_type()));
  }
}

inline void ema_update_op(std::vector<Tensor> shadows, std::vector<Tensor> weights, double decay) {
  std::vector<EmaTensor> pairs;
  pairs.reserve(shadows.size());
  for (std::size_t i = 0; i < shadows.size(); ++i) {
    pairs.push_back({shadows[i].data_ptr(), weights[i].data_ptr(), shadows[i].numel(), weight_type(weights[i])});
  }
  ema_update(pairs.data(), static_cast<std::int64_t>(pairs.size()), decay, torch_for);
}

inline void implement_ema(StableLibrary& m) { m.impl("ema_update_", TORCH_BOX(&ema_update_op)); }

}  // namespace ptrain::glue
