// Registers the ops, namespace ptrain, through torch's stable ABI: one binary for torch 2.10 and later.
//
// An op's glue stands in a header of its own: define_*() gives the schemas, implement_*() the functions,
// which look at the tensors' device themselves. Ops that take no tensor are registered for every backend.

// None of this is an inner loop, and -O3 takes a third longer.
#if defined(__GNUC__) && !defined(__clang__) && defined(__OPTIMIZE__)
#pragma GCC optimize("O1")
#endif

#include "cuda_halting.h"
#include "ema.h"
#include "glue.h"
#include "halting.h"
#include "info.h"
#include "probe.h"
#include "step.h"

using torch::stable::detail::StableLibrary;

STABLE_TORCH_LIBRARY(ptrain, m) {
  ptrain::glue::define_info(m);
  ptrain::glue::define_ema(m);
  ptrain::glue::define_halting(m);
  ptrain::glue::define_probe(m);
  ptrain::glue::define_step(m);
}

STABLE_TORCH_LIBRARY_IMPL(ptrain, CPU, m) {
  ptrain::glue::implement_ema(m);
  ptrain::glue::implement_halting(m);
  ptrain::glue::implement_probe(m);
  ptrain::glue::implement_step(m);
}

#if PTRAIN_CUDA
STABLE_TORCH_LIBRARY_IMPL(ptrain, CUDA, m) {
  ptrain::glue::implement_cuda_halting(m);
  ptrain::glue::implement_ema(m);
  ptrain::glue::implement_step(m);
}
#endif

STABLE_TORCH_LIBRARY_IMPL(ptrain, CompositeExplicitAutograd, m) {
  ptrain::glue::implement_info(m);
  ptrain::glue::implement_ema_plans(m);
  ptrain::glue::implement_step_everywhere(m);
}
