// Asks the processor once, and remembers the answer.
#include "isa.h"

#include <cstdlib>
#include <cstring>

#include "each_isa.h"
#include "small.h"

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
  if (std::strcmp(wanted, name_of(Isa::baseline)) == 0) return Isa::baseline;
  if (std::strcmp(wanted, name_of(Isa::avx2)) == 0) return smaller_of(Isa::avx2, best_isa());
  return best_isa();
}

// Read by every thread; <atomic> is most of what this file would take to compile.
Isa& current() {
  static Isa isa = allowed_isa();
  return isa;
}

}  // namespace

Isa isa() { return __atomic_load_n(&current(), __ATOMIC_RELAXED); }

Isa use_isa(Isa wanted) {
  __atomic_store_n(&current(), smaller_of(wanted, best_isa()), __ATOMIC_RELAXED);
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
