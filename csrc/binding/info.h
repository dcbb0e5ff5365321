// What the library says of itself: the instruction set in use, and whether CUDA kernels are in it.
#pragma once

#include "../core/isa.h"
#include "boxing.h"
#include "glue.h"

#pragma GCC visibility push(hidden)

namespace ptrain::glue {

inline void define_info(Library& m) {
  m.def("isa() -> str");
  m.def("use_isa(str wanted) -> str");
  m.def("has_cuda() -> bool");
}

#if PTRAIN_CUDA
constexpr bool has_cuda = true;
#else
constexpr bool has_cuda = false;
#endif

inline void isa_op(Stack& stack) { stack.give(name_of(isa())); }

inline void use_isa_op(Stack& stack) {
  const std::string wanted = stack.text();
  for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    if (wanted == name_of(isa)) return stack.give(name_of(use_isa(isa)));
  }
  fail({"use_isa: '", wanted, "' is not one of baseline, avx2, avx512"});
}

inline void has_cuda_op(Stack& stack) { stack.give(has_cuda); }

inline void implement_info(Library& m) {
  m.impl("isa", boxed<isa_op>);
  m.impl("use_isa", boxed<use_isa_op>);
  m.impl("has_cuda", boxed<has_cuda_op>);
}

}  // namespace ptrain::glue

#pragma GCC visibility pop
