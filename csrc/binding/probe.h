// The memory probe as an op: `probe_update`.
#pragma once

#include "../core/probe.h"
#include "boxing.h"
#include "glue.h"

#pragma GCC visibility push(hidden)

namespace ptrain::glue {

inline void define_probe(Library& m) { m.def("probe_update(Tensor(a!) x, Tensor y) -> ()"); }

inline void probe_update_op(Stack& stack) {
  const Tensor x = stack.tensor(), y = stack.tensor();
  for (const Tensor* tensor : {&x, &y}) {
    if (tensor->scalar_type() != ScalarType::Float || !tensor->is_contiguous() || !tensor->is_cpu()) {
      fail("probe_update: x and y must be contiguous torch.float32 tensors on the CPU");
    }
  }
  if (x.numel() != y.numel()) fail("probe_update: x and y differ in size");
  probe_update(static_cast<float*>(x.mutable_data_ptr()),
               static_cast<const float*>(y.const_data_ptr()), x.numel(), torch_for);
}

inline void implement_probe(Library& m) { m.impl("probe_update", boxed<probe_update_op>); }

}  // namespace ptrain::glue

#pragma GCC visibility pop
