// What the library says of itself: the instruction set in use, and whether CUDA kernels are in it.
#pragma once

#include "../core/isa.h"
#include "glue.h"

namespace ptrain::glue {

inline void define_info(StableLibrary& m) {
  m.def("isa() -> str");
  m.def("use_isa(str wanted) -> str");
  m.def("has_cuda() -> bool");
}

inline std::string isa_op() { return name_of(isa()); }

inline std::string use_isa_op(std::string wanted) {
  for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    if (wanted == name_of(isa)) return name_of(use_isa(isa));
  }
  fail("use_isa: '" + wanted + "' is not one of baseline, avx2, avx512");
}

inline bool has_cuda_op() {
#if PTRAIN_CUDA
  return true;
#else
  return false;
#endif
}

inline void implement_info(StableLibrary& m) {
  m.impl("isa", TORCH_BOX(&isa_op));
  m.impl("use_isa", TORCH_BOX(&use_isa_op));
  m.impl("has_cuda", TORCH_BOX(&has_cuda_op));
}

}  // namespace ptrain::glue
