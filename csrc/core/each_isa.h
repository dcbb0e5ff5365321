// Compiles the loops of a kernel once for each instruction set, all into one binary.
//
//   #define PTRAIN_SPANS "ema_spans.inl"
//   #include "for_each_isa.inl"
//
// includes the file in the namespaces ptrain::baseline, ptrain::avx2 and ptrain::avx512. The file has no
// includes and no namespace of its own; its loops are plain C++ or GCC vector extensions, its entry is a
// table of functions, of which PTRAIN_PICK(table) gives the one for isa().
#pragma once

#include "isa.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define PTRAIN_X86_ISAS 1
#define PTRAIN_PICK(table)                            \
  (::ptrain::isa() == ::ptrain::Isa::avx512 ? ::ptrain::avx512::table \
   : ::ptrain::isa() == ::ptrain::Isa::avx2 ? ::ptrain::avx2::table   \
                                            : ::ptrain::baseline::table)
#else
#define PTRAIN_X86_ISAS 0
#define PTRAIN_PICK(table) ::ptrain::baseline::table
#endif
