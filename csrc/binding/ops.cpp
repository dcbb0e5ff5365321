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

namespace ptrain::glue {
namespace {

// In this order, when the library is loaded.
const Library schemas("ptrain", nullptr, [](Library& m) {
  define_info(m);
  define_ema(m);
  define_halting(m);
  define_probe(m);
  define_step(m);
});

const Library on_cpu("ptrain", "CPU", [](Library& m) {
  implement_ema(m);
  implement_halting(m);
  implement_probe(m);
  implement_step(m);
});

#if PTRAIN_CUDA
const Library on_cuda("ptrain", "CUDA", [](Library& m) {
  implement_cuda_halting(m);
  implement_ema(m);
  implement_step(m);
});
#endif

const Library everywhere("ptrain", "CompositeExplicitAutograd", [](Library& m) {
  implement_info(m);
  implement_ema_plans(m);
  implement_step_everywhere(m);
});

}  // namespace
}  // namespace ptrain::glue
