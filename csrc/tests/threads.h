// Threads for a test: what a kernel is run on to see that their number changes nothing.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

#include "../core/parallel.h"

// Three threads take the ranges in turn, so that neighbouring ranges run at the same time.
inline void threaded_for(std::int64_t count, std::int64_t grain, ptrain::RangeTask task, void* context) {
  std::vector<std::thread> threads;
  for (int worker = 0; worker < 3; ++worker) {
    threads.emplace_back([=] {
      for (std::int64_t begin = worker * grain; begin < count; begin += 3 * grain) {
        task(begin, std::min(begin + grain, count), context);
      }
    });
  }
  for (auto& thread : threads) thread.join();
}
