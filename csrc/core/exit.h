// The block after which each unit may stop, by the exact worst case of the blocks left, without torch.
//
// The rule stands in plugin_trainer/ops/halting/reference.py (may_stop). Everything is float64, and a
// unit's arithmetic does not depend on the units beside it: the same bits in any batch. The same
// decisions as the reference's too, but where the two sides of the rule are equal to about 1e-14.
#pragma once

#include <cstdint>

#include "halting.h"
#include "parallel.h"

namespace ptrain {

struct ExitTask {
  std::int64_t blocks, units, tokens, classes;  // blocks >= 1, classes >= 2
  const void* logits;                           // as in HaltingTask
  HaltingType logits_type;
  std::int64_t logits_stride;
  const void* halting;
  HaltingType halting_type;
  std::int64_t halting_stride;
  const unsigned char* valid = nullptr;  // bool [U, T], or all
  double delta = 0.0;
  bool in_double = false;  // whether the answers are written as double or float

  std::int64_t* exit_block;  // [U], from 1 to blocks
  void* log_answer;          // [U, T, C]
  void* full_log_answer;     // [U, T, C]
};

void halting_exit(const ExitTask& task, ParallelFor parallel_for = serial_for);

}  // namespace ptrain
