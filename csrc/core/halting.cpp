// Counts the labels, cuts the units into parts of fixed size, and adds up the parts' sums in order.
#include "halting.h"

// The loops are written in vectors. -O3 finds nothing more in them, and takes twice as long.
#if defined(__GNUC__) && !defined(__clang__) && defined(__OPTIMIZE__)
#pragma GCC optimize("O2")
#endif

#include <initializer_list>

#include "each_isa.h"
#include "halting_numbers.h"
#include "small.h"

namespace ptrain {
namespace {

// A unit or a row to a lane. A multiple of every register's lanes.
constexpr int halting_lanes = 16;
// With fewer classes than this, the lanes of a softmax are rows; from there on, classes.
constexpr std::int64_t narrow_classes = 16;
// A tile's exponentials are to stay in the second-level cache.
constexpr std::int64_t tile_bytes = 256 * 1024;
// About 20 us of work: less is not worth waking a thread for.
constexpr double work_per_task = 60e3;

struct HaltingCut {
  std::int64_t tile_rows, chunk_units, part_units;
};

using RunParts = void (*)(const HaltingTask&, const HaltingCut&, std::int64_t begin, std::int64_t end,
                          HaltingSums* sums);

struct HaltingSpans {
  RunParts run_parts;
};

using Row = double[halting_lanes];

// What one thread works in: a fixed part, and room for rows in log space, which are rare.
class HaltingMemory {
 public:
  explicit HaltingMemory(std::int64_t bytes) : all_(bytes) {}
  char* all() { return all_.get(); }
  char* exact(int group, std::int64_t bytes) {
    if (!exact_[group]) exact_[group] = AlignedMemory(bytes);
    return exact_[group].get();
  }

 private:
  AlignedMemory all_;
  AlignedMemory exact_[halting_lanes];
};

inline std::int64_t halting_label(const HaltingTask& task, std::int64_t row) {
  return task.labels_are_int32 ? static_cast<const std::int32_t*>(task.labels)[row]
                               : static_cast<const std::int64_t*>(task.labels)[row];
}

double halting_log(double x) { return __builtin_log(x); }
double halting_log1p(double x) { return __builtin_log1p(x); }

// Turns u [N][lanes] into log w.
void halting_log_weights(double* values, std::int64_t blocks, int lanes) {
  Array<double> kept(blocks);
  for (int i = 0; i < lanes; ++i) {
    double log_p = 0.0;
    for (std::int64_t n = 0; n < blocks; ++n) {
      const double u = values[n * lanes + i];
      kept[n] = n == 0 ? 0.0 : log_one_minus_exp(log_p);
      values[n * lanes + i] = log_p;
      log_p += log_sigmoid(u);
    }
    double log_after = 0.0;
    for (std::int64_t n = blocks - 1; n >= 0; --n) {
      values[n * lanes + i] += log_after;
      log_after += kept[n];
    }
  }
}

}  // namespace
}  // namespace ptrain

#define PTRAIN_SPANS "halting_spans.inl"
#include "for_each_isa.inl"

namespace ptrain {
namespace {

HaltingCut cut_of(const HaltingTask& task) {
  HaltingCut cut{halting_lanes, halting_lanes, 0};
  if (task.tokens > 1) {
    cut.chunk_units = smaller_of<std::int64_t>(larger_of<std::int64_t>(256 / task.tokens, 1), halting_lanes);
  }
  if (task.classes >= narrow_classes) {
    while (cut.tile_rows > 1 && cut.tile_rows * task.blocks * task.classes * 4 > tile_bytes) {
      cut.tile_rows /= 2;
    }
  }
  const std::int64_t chunks = (task.units + cut.chunk_units - 1) / cut.chunk_units;
  cut.part_units = cut.chunk_units * larger_of<std::int64_t>(1, chunks / 4096);
  return cut;
}

struct Job {
  const HaltingTask& task;
  const HaltingCut& cut;
  RunParts run_parts;
  HaltingSums* sums;
};

void run_range(std::int64_t begin, std::int64_t end, void* context) {
  const Job& job = *static_cast<const Job*>(context);
  job.run_parts(job.task, job.cut, begin, end, job.sums);
}

void count_labels(const HaltingTask& task, HaltingCounts& counts) {
  const std::int64_t rows = task.units * task.tokens;
  std::int64_t labelled = 0;
  double weight = 0.0;
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t label = halting_label(task, row);
    if (label == task.ignore_index) continue;
    if (label < 0 || label >= task.classes) {
      counts.has_wrong_label = true;
      counts.wrong_label = label;
      return;
    }
    ++labelled;
    if (task.class_weight != nullptr) weight += task.class_weight[label];
  }
  counts.rows = task.class_weight != nullptr ? weight : static_cast<double>(labelled);
}

}  // namespace

HaltingCounts halting_counts(const HaltingTask& task) {
  HaltingCounts counts;
  if (task.labels != nullptr) {
    count_labels(task, counts);
    if (counts.has_wrong_label) return counts;
    if (task.tokens == 1 && task.mask == nullptr && task.class_weight == nullptr) {
      counts.units = counts.rows;
      return counts;
    }
  } else {
    for (std::int64_t row = 0; row < task.units * task.tokens; ++row) {
      counts.rows += baseline::has_label(task, row) ? 1.0 : 0.0;
    }
  }
  for (std::int64_t unit = 0; unit < task.units; ++unit) {
    counts.units += baseline::is_regularised(task, unit) ? 1.0 : 0.0;
  }
  return counts;
}

HaltingSums halting_loss(const HaltingTask& task, ParallelFor parallel_for) {
  HaltingSums total;
  if (task.units == 0) return total;
  const HaltingCut cut = cut_of(task);
  const std::int64_t parts = (task.units + cut.part_units - 1) / cut.part_units;
  Array<HaltingSums> sums(parts);
  Job job{task, cut, PTRAIN_PICK(halting_spans).run_parts, sums.data()};
  const double per_row = 8.0 + 1.5 * static_cast<double>(task.classes);
  const double work = per_row * static_cast<double>(cut.part_units * task.tokens * task.blocks);
  const auto grain = static_cast<std::int64_t>(larger_of(1.0, work_per_task / larger_of(work, 1.0)));
  parallel_for(parts, grain, run_range, &job);
  for (std::int64_t i = 0; i < parts; ++i) {
    const HaltingSums& part = sums[i];
    total.task += part.task;
    total.supervision += part.supervision;
    total.regulariser += part.regulariser;
  }
  return total;
}

}  // namespace ptrain
