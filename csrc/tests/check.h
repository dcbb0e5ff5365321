// What a test needs: CHECK, which says where it failed and goes on, and the program's exit status.
#pragma once

#include <cstdio>

#include "sanitizers.h"

inline int failures = 0;

// The thread sanitizer takes ten times as long and finds what threads do to each other: what one thread checks
// is left to the other builds, and so is one of three instruction sets. The address sanitizer finds what is
// read and written: whether a value is that of a long formula is left to the build without sanitizers.
#if defined(PTRAIN_THREAD_SANITIZER)
constexpr bool threads_only = true, addresses_only = false;
#elif defined(PTRAIN_ADDRESS_SANITIZER)
constexpr bool threads_only = false, addresses_only = true;
#else
constexpr bool threads_only = false, addresses_only = false;
#endif

#define CHECK(condition, ...)                                             \
  do {                                                                    \
    if (!(condition)) {                                                   \
      ++failures;                                                         \
      std::fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, __VA_ARGS__);                                  \
      std::fprintf(stderr, "\n");                                         \
    }                                                                     \
  } while (false)
