// Shares the units among threads, and works out what the halting logits say of each.
#include "exit.h"

// The loops are written in vectors. -O3 finds nothing more in them, and takes longer.
#if defined(__GNUC__) && !defined(__clang__) && defined(__OPTIMIZE__)
#pragma GCC optimize("O2")
#endif

#include "each_isa.h"
#include "halting_numbers.h"
#include "small.h"

namespace ptrain {
namespace {

// The rule must hold by more than the rounding of whoever recomputes the full answer in float32.
constexpr double halting_exit_slack = 1e-6;
// A block takes a row about 30 ns for each class.
constexpr std::int64_t work_per_task = 2048;

class ExitMemory {
 public:
  explicit ExitMemory(std::int64_t bytes) : all_(bytes) {}
  double* all() { return reinterpret_cast<double*>(all_.get()); }
  bool* flags(std::int64_t count) {
    if (!flags_) flags_ = AlignedMemory(count);
    return reinterpret_cast<bool*>(flags_.get());
  }

 private:
  AlignedMemory all_;
  AlignedMemory flags_;
};

// log p_{n-1}, log(1 - p_{n-1}) and (1 - p_n)^(N - n) of a unit, `step` apart from block to block.
void exit_course(const ExitTask& task, std::int64_t unit, double* log_p, double* log_q, double* kept,
                 std::int64_t step) {
  double sum = 0.0;
  for (std::int64_t n = 0; n < task.blocks; ++n) {
    log_p[n * step] = sum;
    log_q[n * step] = log_one_minus_exp(sum);
    sum += log_sigmoid(halting_number(task.halting_type, task.halting, n * task.halting_stride + unit));
    kept[n * step] = __builtin_exp(static_cast<double>(task.blocks - 1 - n) * log_one_minus_exp(sum));
  }
}

}  // namespace
}  // namespace ptrain

#define PTRAIN_SPANS "exit_spans.inl"
#include "for_each_isa.inl"

namespace ptrain {
namespace {

struct Job {
  const ExitTask& task;
  void (*run)(const ExitTask&, std::int64_t begin, std::int64_t end);
};

void run_range(std::int64_t begin, std::int64_t end, void* context) {
  const Job& job = *static_cast<const Job*>(context);
  job.run(job.task, begin, end);
}

}  // namespace

void halting_exit(const ExitTask& task, ParallelFor parallel_for) {
  Job job{task, PTRAIN_PICK(exit_entry)};
  const std::int64_t work = task.blocks * task.tokens * task.classes;
  parallel_for(task.units, larger_of<std::int64_t>(1, work_per_task / larger_of<std::int64_t>(work, 1)),
               run_range, &job);
}

}  // namespace ptrain
