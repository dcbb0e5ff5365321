// What a test needs: CHECK, which says where it failed and goes on, and the program's exit status.
#pragma once

#include <cstdio>

inline int failures = 0;

#define CHECK(condition, ...)                                             \
  do {                                                                    \
    if (!(condition)) {                                                   \
      ++failures;                                                         \
      std::fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, __VA_ARGS__);                                  \
      std::fprintf(stderr, "\n");                                         \
    }                                                                     \
  } while (false)
