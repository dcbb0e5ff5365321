// Included after PTRAIN_SPANS is defined: see each_isa.h.

namespace ptrain::baseline {
#include PTRAIN_SPANS
}

#if PTRAIN_X86_ISAS

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("arch=x86-64-v3"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#endif
namespace ptrain::avx2 {
#include PTRAIN_SPANS
}
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("arch=x86-64-v4,prefer-vector-width=512"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,prefer-vector-width=512")
#endif
namespace ptrain::avx512 {
#include PTRAIN_SPANS
}
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // PTRAIN_X86_ISAS

#undef PTRAIN_SPANS
