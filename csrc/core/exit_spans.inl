// The loops of the exit rule for one instruction set: as many rows at a time as a register has doubles.
#include "simd.inl"

namespace {

// log(1 + x) for x from 0 to 1.
PTRAIN_INLINE Doubles log_one_plus(Doubles x) {
  const Doubles sum = 1.0 + x;
  return log_of(sum) + (x - (sum - 1.0)) / sum;
}

// What the halting logits say of one unit's lane: log p_{n-1}, log(1 - p_{n-1}), (1 - p_n)^(N - n).
struct Course {
  double *log_p, *log_q, *kept;  // [N][double_lanes]
};

struct Rows {
  std::int64_t row[double_lanes];
  std::int64_t exit_block[double_lanes];  // 0: not yet known
  int count;
};

// Walks through the blocks. Where exit_block is not given, stops[n] tells where the rule holds.
__attribute__((noinline)) void walk(const ExitTask& task, const Course& course, const Rows& rows,
                                    Doubles* answer, Doubles* fresh, std::int64_t (*stops)[double_lanes]) {
  const std::int64_t classes = task.classes;
  double lane[double_lanes];
  for (std::int64_t c = 0; c < classes; ++c) answer[c] = all(-__builtin_inf());
  DoubleBits open = DoubleBits{} - 1;
  for (std::int64_t n = 0; n < task.blocks; ++n) {
    Doubles most = all(-__builtin_inf());
    for (std::int64_t c = 0; c < classes; ++c) {
      for (int k = 0; k < double_lanes; ++k) {
        lane[k] = halting_number(task.logits_type, task.logits,
                                 n * task.logits_stride + rows.row[k] * classes + c);
      }
      fresh[c] = load<Doubles>(lane);
      most = larger(fresh[c], most);
    }
    Doubles sum{};
    for (std::int64_t c = 0; c < classes; ++c) {
      fresh[c] -= most;
      sum += exp_of(fresh[c]);
    }
    const Doubles log_sum = log_of(sum);
    const Doubles log_p = load<Doubles>(course.log_p + n * double_lanes);
    const Doubles log_q = load<Doubles>(course.log_q + n * double_lanes);
    Doubles best = all(-__builtin_inf()), second = best;
    DoubleBits known = DoubleBits{} - 1;
    for (std::int64_t c = 0; c < classes; ++c) {
      const Doubles new_part = log_p + (fresh[c] - log_sum);
      const Doubles old_part = log_q + answer[c];
      const DoubleBits grows = new_part > old_part;
      const Doubles high = grows ? new_part : old_part;
      const Doubles low = grows ? old_part : new_part;  // of two NaN in either place, one comes through
      const Doubles gap = low == -__builtin_inf() ? low : low - high;
      const Doubles sum_of_both = high + log_one_plus(exp_of(gap));
      answer[c] = sum_of_both;
      known &= sum_of_both == sum_of_both;
      const DoubleBits leads = sum_of_both > best;
      const Doubles runner_up = leads ? best : sum_of_both;
      second = runner_up > second ? runner_up : second;
      best = leads ? sum_of_both : best;
    }
    const Doubles kept = load<Doubles>(course.kept + n * double_lanes);
    const Doubles bound = kept * (1.0 + exp_of(best) - exp_of(second));
    DoubleBits stop = (bound > 1.0 - task.delta + halting_exit_slack) & known;
    if (n + 1 == task.blocks) stop = DoubleBits{} - 1;
    store(stops[n], stop);
    DoubleBits here;
    for (int k = 0; k < double_lanes; ++k) {
      here[k] = rows.exit_block[k] > 0 ? -(rows.exit_block[k] == n + 1) : (stop[k] & open[k]);
    }
    open &= ~here;
    for (int k = 0; k < rows.count; ++k) {
      for (std::int64_t c = 0; c < classes; ++c) {
        if (here[k]) halting_write(task.in_double, task.log_answer, rows.row[k] * classes + c, answer[c][k]);
      }
    }
  }
  for (int k = 0; k < rows.count; ++k) {
    for (std::int64_t c = 0; c < classes; ++c) {
      halting_write(task.in_double, task.full_log_answer, rows.row[k] * classes + c, answer[c][k]);
    }
  }
}

void run_exits(const ExitTask& task, std::int64_t begin, std::int64_t end) {
  const std::int64_t blocks = task.blocks, lanes = double_lanes;
  const std::int64_t per_course = blocks * lanes;
  const std::int64_t doubles = 4 * per_course + 2 * task.classes * lanes;
  ExitMemory memory(doubles * 8);
  double* from = memory.all();
  const Course course{from, from + per_course, from + 2 * per_course};
  auto* stops = reinterpret_cast<std::int64_t (*)[double_lanes]>(from + 3 * per_course);
  Doubles* answer = reinterpret_cast<Doubles*>(from + 4 * per_course);
  Doubles* fresh = answer + task.classes;
  const std::int64_t step = task.tokens == 1 ? lanes : 1;
  for (std::int64_t unit = begin; unit < end; unit += step) {
    const std::int64_t units = end - unit < step ? end - unit : step;
    for (int k = 0; k < lanes; ++k) {
      const std::int64_t own = task.tokens == 1 ? unit + (k < units ? k : 0) : unit;
      exit_course(task, own, course.log_p + k, course.log_q + k, course.kept + k, lanes);
    }
    if (task.tokens == 1) {
      Rows rows;
      rows.count = static_cast<int>(units);
      for (int k = 0; k < lanes; ++k) {
        rows.row[k] = unit + (k < units ? k : 0);
        // Without a valid token nothing is waited for.
        rows.exit_block[k] = task.valid != nullptr && !task.valid[rows.row[k]] ? 1 : 0;
      }
      walk(task, course, rows, answer, fresh, stops);
      for (int k = 0; k < units; ++k) {
        std::int64_t block = 1;
        while (!stops[block - 1][k]) ++block;
        task.exit_block[unit + k] = rows.exit_block[k] > 0 ? rows.exit_block[k] : block;
      }
      continue;
    }
    // A sentence: first where all valid tokens may stop, then the answers there.
    bool* together = memory.flags(blocks);
    for (std::int64_t n = 0; n < blocks; ++n) together[n] = true;
    std::int64_t exit_block = 0;
    for (int pass = 0; pass < 2; ++pass) {
      for (std::int64_t t = 0; t < task.tokens; t += lanes) {
        Rows rows;
        rows.count = static_cast<int>(task.tokens - t < lanes ? task.tokens - t : lanes);
        for (int k = 0; k < lanes; ++k) {
          rows.row[k] = unit * task.tokens + t + (k < rows.count ? k : 0);
          rows.exit_block[k] = exit_block;
        }
        walk(task, course, rows, answer, fresh, stops);
        if (pass == 1) continue;
        for (std::int64_t n = 0; n < blocks; ++n) {
          for (int k = 0; k < rows.count; ++k) {
            if (task.valid == nullptr || task.valid[rows.row[k]]) together[n] &= stops[n][k] != 0;
          }
        }
      }
      for (exit_block = 1; !together[exit_block - 1]; ++exit_block) {
      }
    }
    task.exit_block[unit] = exit_block;
  }
}

}  // namespace

constexpr auto exit_entry = run_exits;
