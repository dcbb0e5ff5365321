// Included after PTRAIN_SPANS is defined: see each_isa.h. The included file sees PTRAIN_VECTOR_BYTES, the
// width of the set's registers: 16, 32 or 64.

#define PTRAIN_VECTOR_BYTES 16
namespace ptrain::baseline {
#include PTRAIN_SPANS
}
#undef PTRAIN_VECTOR_BYTES

#if PTRAIN_X86_ISAS

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("arch=x86-64-v3"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#endif
#define PTRAIN_VECTOR_BYTES 32
namespace ptrain::avx2 {
#include PTRAIN_SPANS
}
#undef PTRAIN_VECTOR_BYTES
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("arch=x86-64-v4,prefer-vector-width=512"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,prefer-vector-width=512")
#endif
#define PTRAIN_VECTOR_BYTES 64
namespace ptrain::avx512 {
#include PTRAIN_SPANS
}
#undef PTRAIN_VECTOR_BYTES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // PTRAIN_X86_ISAS

#undef PTRAIN_SPANS
