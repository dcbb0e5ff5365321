// The halting loss against ten lines of double, for every instruction set, layout, type and thread.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "../core/exit.h"
#include "../core/halting.h"
#include "../core/isa.h"
#include "check.h"

using namespace ptrain;

namespace {

void threaded_for(std::int64_t count, std::int64_t /*grain*/, RangeTask task, void* context) {
  std::vector<std::thread> threads;
  for (int worker = 0; worker < 3; ++worker) {
    threads.emplace_back([=] {
      for (std::int64_t i = worker; i < count; i += 3) task(i, i + 1, context);
    });
  }
  for (auto& thread : threads) thread.join();
}

struct Shape {
  std::int64_t blocks, units, tokens, classes;
};

const Shape shapes[] = {{1, 1, 1, 2},   {2, 17, 1, 3},  {12, 33, 1, 15}, {3, 20, 1, 16}, {4, 5, 7, 9},
                        {3, 2, 300, 3}, {5, 19, 1, 40}, {12, 9, 3, 600}, {60, 4, 1, 4},  {3, 0, 1, 3},
                        {2, 16, 1, 5},  {3, 33, 1, 20}};

// One problem and all its results, each in a vector of its exact size: a sanitizer sees a step beyond.
struct Problem {
  Shape shape;
  std::vector<float> logits, halting, grad_logits, grad_halting, log_answer, halting_p, exit_weights;
  std::vector<std::int64_t> labels;
  std::vector<double> alpha, beta, eta;
  double smoothing;
  HaltingSums sums;

  Problem(const Shape& shape, double scale, double smoothing, bool supervised)
      : shape(shape), smoothing(smoothing) {
    std::mt19937 random(11);
    std::normal_distribution<float> normal;
    const std::int64_t rows = shape.units * shape.tokens;
    logits.resize(static_cast<std::size_t>(shape.blocks * rows * shape.classes));
    halting.resize(static_cast<std::size_t>(shape.blocks * shape.units));
    for (float& z : logits) z = static_cast<float>(scale) * normal(random);
    for (float& u : halting) u = static_cast<float>(scale) * normal(random);
    for (std::int64_t row = 0; row < rows; ++row) {
      const bool ignored = row % 5 == 3;
      labels.push_back(ignored ? -100 : static_cast<std::int64_t>(random() % static_cast<unsigned>(shape.classes)));
    }
    alpha.assign(static_cast<std::size_t>(shape.blocks), 1.0);
    beta.assign(static_cast<std::size_t>(shape.blocks), 0.25);
    if (supervised) eta.assign(static_cast<std::size_t>(shape.blocks), 0.3);
    grad_logits.resize(logits.size());
    grad_halting.resize(halting.size());
    halting_p.resize(halting.size());
    exit_weights.resize(halting.size());
    log_answer.resize(static_cast<std::size_t>(rows * shape.classes));
  }

  void run(ParallelFor parallel_for, bool in_place = false) {
    static const double one = 1.0, tau = 0.1;
    const std::int64_t stride = shape.units * shape.tokens * shape.classes;
    HaltingTask task{};
    task.blocks = shape.blocks;
    task.units = shape.units;
    task.tokens = shape.tokens;
    task.classes = shape.classes;
    task.logits = logits.data();
    task.logits_type = task.halting_type = HaltingType::float32;
    task.logits_stride = task.grad_logits_stride = stride;
    task.halting = halting.data();
    task.halting_stride = shape.units;
    task.labels = labels.empty() ? static_cast<const void*>(&task) : labels.data();
    task.label_smoothing = smoothing;
    task.alpha = alpha.data();
    task.beta = beta.data();
    task.eta = eta.empty() ? nullptr : eta.data();
    task.grad_task = task.grad_supervision = {&one, 0};
    task.grad_regulariser = {&tau, 0};
    task.grad_logits = in_place ? logits.data() : grad_logits.data();
    task.grad_halting = grad_halting.data();
    task.log_answer = log_answer.data();
    task.halting_p = halting_p.data();
    task.exit_weights = exit_weights.data();
    sums = halting_loss(task, parallel_for);
  }
};

double log_sum(const std::vector<double>& values) {
  const double most = *std::max_element(values.begin(), values.end());
  double sum = 0.0;
  for (double value : values) sum += std::exp(value - most);
  return most + std::log(sum);
}

// The definition, in log space and double: the task and supervision losses of all rows.
void check_loss(const Problem& problem, const char* isa) {
  const Shape& s = problem.shape;
  double task = 0.0, supervision = 0.0;
  for (std::int64_t row = 0; row < s.units * s.tokens; ++row) {
    const std::int64_t unit = row / s.tokens, label = problem.labels[row];
    std::vector<std::vector<double>> log_wy(static_cast<std::size_t>(s.classes));
    std::vector<double> log_p{0.0}, log_w;
    for (std::int64_t n = 0; n < s.blocks; ++n) {
      const double u = problem.halting[n * s.units + unit];
      log_p.push_back(log_p.back() + std::min(u, 0.0) - std::log1p(std::exp(-std::fabs(u))));
    }
    for (std::int64_t n = 0; n < s.blocks; ++n) {
      log_w.push_back(log_p[n]);
      for (std::int64_t m = n + 1; m < s.blocks; ++m) log_w.back() += std::log(-std::expm1(log_p[m]));
      std::vector<double> z(problem.logits.begin() + (n * s.units * s.tokens + row) * s.classes,
                            problem.logits.begin() + (n * s.units * s.tokens + row + 1) * s.classes);
      const double total = log_sum(z);
      for (std::int64_t c = 0; c < s.classes; ++c) {
        const double target = (c == label) * (1.0 - problem.smoothing) + problem.smoothing / static_cast<double>(s.classes);
        log_wy[c].push_back(log_w[n] + z[c] - total);
        if (label >= 0 && !problem.eta.empty()) supervision -= problem.eta[n] * target * (z[c] - total);
      }
    }
    for (std::int64_t c = 0; c < s.classes; ++c) {
      const double target = (c == label) * (1.0 - problem.smoothing) + problem.smoothing / static_cast<double>(s.classes);
      const double exact = log_sum(log_wy[c]);
      if (label >= 0 && target != 0.0) task -= target * exact;
      const double ours = problem.log_answer[row * s.classes + c];
      CHECK(std::fabs(ours - exact) <= 1e-6 * (1.0 + std::fabs(exact)), "%s: log answer %g, not %g", isa, ours, exact);
      if (failures > 10) return;
    }
  }
  CHECK(std::fabs(problem.sums.task - task) <= 1e-6 * (1.0 + task), "%s: task %g, not %g", isa, problem.sums.task, task);
  CHECK(std::fabs(problem.sums.supervision - supervision) <= 1e-6 * (1.0 + supervision), "%s: supervision %g, not %g", isa,
        problem.sums.supervision, supervision);
}

// A step against the gradient lowers the loss by what the gradient says.
void check_gradient(const Shape& shape, double smoothing) {
  Problem here(shape, 2.0, smoothing, true);
  here.run(serial_for);
  double slope = 0.0;
  for (float g : here.grad_logits) slope += static_cast<double>(g) * g;
  for (float g : here.grad_halting) slope += static_cast<double>(g) * g;
  if (slope == 0.0) return;
  auto value = [&](double step) {
    Problem there = here;
    for (std::size_t i = 0; i < there.logits.size(); ++i) there.logits[i] += static_cast<float>(step) * here.grad_logits[i];
    for (std::size_t i = 0; i < there.halting.size(); ++i) there.halting[i] += static_cast<float>(step) * here.grad_halting[i];
    there.run(serial_for);
    return there.sums.task + there.sums.supervision + 0.1 * there.sums.regulariser;
  };
  const double step = 0.02 / std::sqrt(slope);  // long beside float32's grain, short beside the loss's bends
  const double measured = (value(step) - value(-step)) / (2.0 * step);
  CHECK(std::fabs(measured - slope) <= 3e-3 * slope, "%s: slope %g, not %g", name_of(isa()), measured, slope);
}

template <typename Value>
bool same_bits(const std::vector<Value>& a, const std::vector<Value>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(Value)) == 0);
}

void every_shape_is_right() {
  for (const Shape& shape : shapes) {
    for (double smoothing : {0.0, 0.1}) {
      for (double scale : {2.0, 12.0, 120.0}) {  // 12: a maximum is taken from some tiles and not from others
        const Problem posed(shape, scale, smoothing, scale < 100.0);
        Problem threaded = posed;
        threaded.run(threaded_for);
        if (threads_only) continue;
        Problem problem = posed;
        problem.run(serial_for);
        if (!addresses_only) check_loss(problem, name_of(isa()));
        CHECK(same_bits(problem.grad_logits, threaded.grad_logits) && same_bits(problem.grad_halting, threaded.grad_halting) &&
                  problem.sums.task == threaded.sums.task,
              "threads change bits with %lld classes", static_cast<long long>(shape.classes));
        Problem over = posed;
        over.run(serial_for, true);
        CHECK(same_bits(problem.grad_logits, over.logits), "in place, %lld classes", static_cast<long long>(shape.classes));
      }
      if (!threads_only && !addresses_only) check_gradient(shape, smoothing);
    }
  }
}

void labels_are_counted_and_checked() {
  Problem problem({2, 10, 1, 3}, 1.0, 0.0, false);
  HaltingTask task{};
  task.blocks = 2;
  task.units = 10;
  task.tokens = 1;
  task.classes = 3;
  task.labels = problem.labels.data();
  const HaltingCounts counts = halting_counts(task);
  CHECK(counts.rows == 8.0 && counts.units == 8.0 && !counts.has_wrong_label, "%g %g", counts.rows, counts.units);
  problem.labels[7] = 3;
  const HaltingCounts wrong = halting_counts(task);
  CHECK(wrong.has_wrong_label && wrong.wrong_label == 3, "%d", static_cast<int>(wrong.wrong_label));
}

void every_unit_exits_alike_in_any_batch() {
  for (const Shape& shape : {Shape{6, 21, 1, 3}, Shape{4, 3, 11, 5}}) {
    Problem problem(shape, 2.0, 0.0, false);
    const std::int64_t rows = shape.units * shape.tokens;
    ExitTask task{};
    task.blocks = shape.blocks;
    task.tokens = shape.tokens;
    task.classes = shape.classes;
    task.logits_type = task.halting_type = HaltingType::float32;
    task.logits_stride = rows * shape.classes;
    task.halting_stride = shape.units;
    std::vector<std::int64_t> blocks(static_cast<std::size_t>(shape.units)), one(1);
    std::vector<float> answer(problem.log_answer.size()), full(answer.size());
    const std::size_t size = static_cast<std::size_t>(shape.tokens * shape.classes);
    std::vector<float> one_answer(size), one_full(size);
    task.units = shape.units;
    task.logits = problem.logits.data();
    task.halting = problem.halting.data();
    task.exit_block = blocks.data();
    task.log_answer = answer.data();
    task.full_log_answer = full.data();
    halting_exit(task, threaded_for);
    for (std::int64_t unit = 0; unit < shape.units; ++unit) {
      task.units = 1;
      task.logits = problem.logits.data() + static_cast<std::size_t>(unit) * size;
      task.halting = problem.halting.data() + unit;
      task.exit_block = one.data();
      task.log_answer = one_answer.data();
      task.full_log_answer = one_full.data();
      halting_exit(task);
      const auto start = static_cast<std::ptrdiff_t>(static_cast<std::size_t>(unit) * size);
      CHECK(one[0] == blocks[static_cast<std::size_t>(unit)] && one[0] >= 1 && one[0] <= shape.blocks, "unit %d",
            static_cast<int>(unit));
      CHECK(std::equal(one_answer.begin(), one_answer.end(), answer.begin() + start) &&
                std::equal(one_full.begin(), one_full.end(), full.begin() + start),
            "unit %d", static_cast<int>(unit));
    }
  }
}

}  // namespace

int main() {
  for (Isa wanted : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    if (use_isa(wanted) != wanted) continue;
    if (threads_only && wanted == Isa::avx2) continue;
    every_shape_is_right();
    every_unit_exits_alike_in_any_batch();
  }
  labels_are_counted_and_checked();
  return failures ? 1 : 0;
}
