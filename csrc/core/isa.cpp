// Asks the processor once, and remembers the answer.
#include "isa.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "each_isa.h"

namespace ptrain {
namespace {

Isa best_isa() {
#if PTRAIN_X86_ISAS
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
  return avx512 ? Isa::avx512 : avx2 ? Isa::avx2 : Isa::baseline;
#else
  return Isa::baseline;
#endif
}

Isa allowed_isa() {
  const char* wanted = std::getenv("PTRAIN_ISA");
  if (wanted == nullptr) return best_isa();
  for (Isa isa : {Isa::baseline, Isa::avx2}) {
    if (std::strcmp(wanted, name_of(isa)) == 0) return std::min(isa, best_isa());
  }
  return best_isa();
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> isa{allowed_isa()};
  return isa;
}

}  // namespace

Isa isa() { return current().load(std::memory_order_relaxed); }

Isa use_isa(Isa wanted) {
  current() = std::min(wanted, best_isa());
  return isa();
}

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
    default: return "baseline";
  }
}

}  // namespace ptrain
