// The CUDA kernels of the halting loss and the exit rule, run on the CPU by emulated_cuda.h, against the CPU's.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "../core/exit.h"
#include "../core/halting.h"
#include "../cuda/exit.cu"
#include "../cuda/halting.cu"
#include "check.h"

namespace gpu = ptrain::cuda;
using gpu::NumberType;
using gpu::Reduction;

namespace {

std::mt19937 random_numbers(11);

std::vector<float> normal(std::int64_t size, double spread) {
  std::normal_distribution<double> numbers(0.0, spread);
  std::vector<float> out(static_cast<std::size_t>(size));
  for (float& x : out) x = static_cast<float>(numbers(random_numbers));
  return out;
}

std::vector<double> positive(std::int64_t size) {
  std::uniform_real_distribution<double> numbers(0.1, 1.0);
  std::vector<double> out(static_cast<std::size_t>(size));
  for (double& x : out) x = numbers(random_numbers);
  return out;
}

// Bits of the type; all inputs are kept as floats, which every type here but the 16-bit ones holds.
std::vector<char> stored(const std::vector<float>& values, NumberType type) {
  const std::size_t width = type == NumberType::float64 ? 8 : type == NumberType::float32 ? 4 : 2;
  std::vector<char> bytes(values.size() * width);
  for (std::size_t i = 0; i < values.size(); ++i) {
    gpu::put_number<double>(bytes.data(), type, static_cast<std::int64_t>(i), values[i]);
  }
  return bytes;
}

std::vector<double> numbers_of(const std::vector<char>& bytes, NumberType type, std::int64_t size) {
  std::vector<double> out(static_cast<std::size_t>(size));
  for (std::int64_t i = 0; i < size; ++i) out[i] = gpu::number_at<double>(bytes.data(), type, i);
  return out;
}

// Of L2 norms, where that of `expected` counts as `least` if it is smaller.
double relative_distance(const std::vector<double>& ours, const std::vector<double>& expected,
                         double least = 1e-10) {
  double error = 0.0, size = least * least;
  for (std::size_t i = 0; i < ours.size(); ++i) {
    if (std::isinf(expected[i]) && ours[i] == expected[i]) continue;
    error += (ours[i] - expected[i]) * (ours[i] - expected[i]);
    size += expected[i] * expected[i];
  }
  return std::sqrt(error / size);
}

struct Case {
  std::int64_t blocks, units, tokens, classes;
  NumberType logits_type = NumberType::float32;
  NumberType halting_type = NumberType::float32;
  double logits_spread = 3.0, halting_spread = 2.0;
  bool soft = false, int32_labels = false, weighted = false, deep = false, masked = false, mask_per_row = false;
  bool in_place = false, per_row_grads = false;
  double smoothing = 0.0;
  Reduction reduction = Reduction::mean;
  float halting_everywhere = 0.0f;  // if not 0: all halting logits of unit 0
};

ptrain::HaltingType core_type(NumberType type) { return static_cast<ptrain::HaltingType>(type); }

struct Outputs {
  std::vector<char> grad_logits, grad_halting, task, supervision, regulariser, loss, log_answer, halting_p,
      exit_weights;
};

void the_loss_is_that_of_the_cpu(const Case& c) {
  const std::int64_t N = c.blocks, U = c.units, T = c.tokens, C = c.classes, R = U * T;
  const bool wide = c.logits_type == NumberType::float64 || c.halting_type == NumberType::float64;
  const NumberType result = wide ? NumberType::float64 : NumberType::float32;
  std::vector<char> logits = stored(normal(N * R * C, c.logits_spread), c.logits_type);
  std::vector<float> u = normal(N * U, c.halting_spread);
  for (std::int64_t n = 0; n < N && c.halting_everywhere != 0.0f && U > 0; ++n) u[n * U] = c.halting_everywhere;
  if (U > 2) u[U - 1] = std::numeric_limits<float>::infinity(), u[(N - 1) * U + 1] = -u[U - 1];
  const std::vector<char> halting = stored(u, c.halting_type);
  std::vector<std::int64_t> labels(static_cast<std::size_t>(R));
  std::vector<std::int32_t> labels32(labels.size());
  for (std::size_t i = 0; i < labels.size(); ++i) {
    labels[i] = i % 4 == 3 ? -100 : static_cast<std::int64_t>(random_numbers() % static_cast<unsigned>(C));
    if (T > 1 && static_cast<std::int64_t>(i) / T == 1) labels[i] = -100;  // a sentence without any
    labels32[i] = static_cast<std::int32_t>(labels[i]);
  }
  std::vector<float> soft = normal(R * C, 1.0);
  for (std::size_t i = 0; i < soft.size(); ++i) {
    const bool nothing = i / static_cast<std::size_t>(C) % 3 == 1;
    soft[i] = nothing || i % 5 == 0 ? 0.0f : std::fabs(soft[i]);
  }
  const std::vector<double> class_weight = positive(C), alpha = positive(N), beta = positive(N), eta = positive(N);
  std::vector<unsigned char> mask(static_cast<std::size_t>(c.mask_per_row ? R : U));
  for (std::size_t i = 0; i < mask.size(); ++i) mask[i] = i % 3 != 0;
  const double tau = 0.3;

  // The CPU's kernel gets the same numbers in double, so that its own rounding is no part of what is seen.
  const std::vector<double> wide_logits = numbers_of(logits, c.logits_type, N * R * C);
  const std::vector<double> wide_halting = numbers_of(halting, c.halting_type, N * U);
  ptrain::HaltingTask core{};
  core.blocks = N, core.units = U, core.tokens = T, core.classes = C;
  core.logits = wide_logits.data();
  core.logits_type = core_type(NumberType::float64);
  core.logits_stride = R * C;
  core.halting = wide_halting.data();
  core.halting_type = core_type(NumberType::float64);
  core.halting_stride = U;
  core.labels = c.soft ? nullptr : c.int32_labels ? static_cast<const void*>(labels32.data()) : labels.data();
  core.labels_are_int32 = c.int32_labels;
  core.soft_labels = c.soft ? soft.data() : nullptr;
  core.class_weight = c.weighted ? class_weight.data() : nullptr;
  core.label_smoothing = c.smoothing;
  core.alpha = alpha.data();
  core.beta = beta.data();
  core.eta = c.deep ? eta.data() : nullptr;
  core.mask = c.masked ? mask.data() : nullptr;
  core.mask_is_per_row = c.mask_per_row;
  core.in_double = true;

  gpu::HaltingTask task{};
  task.blocks = N, task.units = U, task.tokens = T, task.classes = C;
  task.logits = logits.data();
  task.logits_type = c.logits_type;
  task.logits_stride = R * C;
  task.halting = halting.data();
  task.halting_type = c.halting_type;
  task.halting_stride = U;
  task.labels = core.labels;
  task.labels_type = c.int32_labels ? NumberType::int32 : NumberType::int64;
  task.soft_labels = core.soft_labels;
  task.soft_type = NumberType::float32;
  task.ignore_index = -100;
  const auto per_item = [](const std::vector<double>& values) {
    return gpu::Numbers{values.data(), NumberType::float64, 1, 0.0};
  };
  const auto all = [](double value) { return gpu::Numbers{nullptr, NumberType::float32, 0, value}; };
  task.class_weight = c.weighted ? per_item(class_weight) : all(1.0);
  task.label_smoothing = c.smoothing;
  task.alpha = per_item(alpha);
  task.beta = per_item(beta);
  task.eta = c.deep ? per_item(eta) : all(0.0);
  task.has_eta = c.deep;
  task.mask = core.mask;
  task.mask_is_per_row = c.mask_per_row;
  task.in_double = wide;
  task.reduction = c.reduction;
  task.tau = tau;
  task.row_count = all(17.0);
  task.unit_count = all(13.0);
  const std::vector<double> from_loss = positive(U), from_task = positive(R), from_deep = positive(R),
                            from_regulariser = positive(U);
  task.grad_loss = c.per_row_grads ? per_item(from_loss) : all(1.0);
  task.grad_task = c.per_row_grads ? per_item(from_task) : all(0.0);
  task.grad_supervision = c.per_row_grads ? per_item(from_deep) : all(0.0);
  task.grad_regulariser = c.per_row_grads ? per_item(from_regulariser) : all(0.0);

  // The CPU's kernel is told the scales; the GPU's finds them itself.
  double row_count = 1.0, unit_count = 1.0;
  if (c.reduction == Reduction::mean) {
    const ptrain::HaltingCounts counts = ptrain::halting_counts(core);
    row_count = counts.rows, unit_count = counts.units;
  } else if (c.reduction == Reduction::given_mean) {
    row_count = 17.0, unit_count = 13.0;
  }
  std::vector<double> task_scale, deep_scale, regulariser_scale;
  for (std::int64_t row = 0; row < R; ++row) {
    const double above = c.per_row_grads ? from_loss[row / T] : 1.0;
    task_scale.push_back((above + (c.per_row_grads ? from_task[row] : 0.0)) / row_count);
    deep_scale.push_back((above + (c.per_row_grads ? from_deep[row] : 0.0)) / row_count);
  }
  for (std::int64_t unit = 0; unit < U; ++unit) {
    const double above = c.per_row_grads ? from_loss[unit] : 1.0;
    regulariser_scale.push_back((tau * above + (c.per_row_grads ? from_regulariser[unit] : 0.0)) / unit_count);
  }
  core.grad_task = {task_scale.data(), 1};
  core.grad_supervision = {deep_scale.data(), 1};
  core.grad_regulariser = {regulariser_scale.data(), 1};

  const bool each = c.reduction == Reduction::none;
  Outputs ours, expected;
  const auto room = [](std::vector<char>& bytes, std::int64_t size) -> void* {
    bytes.assign(static_cast<std::size_t>(size), '\x7f');
    return bytes.data();
  };
  for (Outputs* out : {&ours, &expected}) {
    const bool on_gpu = out == &ours;
    const std::int64_t result_bytes = on_gpu && !wide ? 4 : 8;
    void* grad_logits = room(out->grad_logits, on_gpu ? static_cast<std::int64_t>(logits.size()) : 8 * N * R * C);
    void* grad_halting = room(out->grad_halting, on_gpu ? static_cast<std::int64_t>(halting.size()) : 8 * N * U);
    void* cost = room(out->task, result_bytes * (on_gpu && !each ? 1 : R));
    void* deep = room(out->supervision, result_bytes * (on_gpu && !each ? 1 : R));
    void* regulariser = room(out->regulariser, result_bytes * (on_gpu && !each ? 1 : U));
    void* loss = room(out->loss, result_bytes * (on_gpu && !each ? 1 : U));
    void* log_answer = room(out->log_answer, result_bytes * R * C);
    void* p = room(out->halting_p, result_bytes * N * U);
    void* w = room(out->exit_weights, result_bytes * N * U);
    if (on_gpu) {
      task.grad_logits = grad_logits, task.grad_halting = grad_halting, task.task = cost, task.supervision = deep;
      task.regulariser = regulariser, task.loss = loss, task.log_answer = log_answer, task.halting_p = p;
      task.exit_weights = w;
      task.grad_logits_stride = R * C;
    } else {
      core.grad_logits = grad_logits, core.grad_halting = grad_halting, core.task = cost, core.supervision = deep;
      core.regulariser = regulariser, core.log_answer = log_answer, core.halting_p = p, core.exit_weights = w;
      core.grad_logits_stride = R * C;
    }
  }
  const ptrain::HaltingSums sums = ptrain::halting_loss(core);
  if (c.in_place) task.grad_logits = logits.data();
  std::vector<double> scratch(static_cast<std::size_t>(gpu::halting_scratch(task)), NAN);
  task.scratch = scratch.data();
  CHECK(gpu::halting_refusal(task) == nullptr, "%lld blocks", static_cast<long long>(N));
  gpu::halting_loss(task, nullptr);
  if (c.in_place) ours.grad_logits = logits;

  const auto close = [&](const std::vector<char>& a, const std::vector<char>& b, NumberType type, std::int64_t size,
                         const char* what, double least = 1e-10) {
    const double limit = type == NumberType::float64   ? 1e-10
                         : type == NumberType::float32 ? 5e-7
                         : type == NumberType::float16 ? 1e-3
                                                       : 5e-3;
    const double distance = relative_distance(numbers_of(a, type, size), numbers_of(b, NumberType::float64, size), least);
    CHECK(distance <= limit,
          "%s: %g (N %lld, U %lld, T %lld, C %lld, type %d, spread %g, reduction %d, soft %d, smoothing %g)", what,
          distance, static_cast<long long>(N), static_cast<long long>(U), static_cast<long long>(T),
          static_cast<long long>(C), static_cast<int>(c.logits_type), c.logits_spread,
          static_cast<int>(c.reduction), c.soft, c.smoothing);
  };
  close(ours.grad_logits, expected.grad_logits, c.logits_type, N * R * C, "grad_logits");
  close(ours.grad_halting, expected.grad_halting, c.halting_type, N * U, "grad_halting");
  close(ours.log_answer, expected.log_answer, result, R * C, "log_answer", 1.0);
  close(ours.halting_p, expected.halting_p, result, N * U, "halting_p");
  close(ours.exit_weights, expected.exit_weights, result, N * U, "exit_weights");
  if (each) {
    close(ours.task, expected.task, result, R, "task");
    close(ours.supervision, expected.supervision, result, R, "supervision");
    close(ours.regulariser, expected.regulariser, result, U, "regulariser");
    std::vector<double> losses = numbers_of(expected.regulariser, NumberType::float64, U);
    const std::vector<double> costs = numbers_of(expected.task, NumberType::float64, R);
    const std::vector<double> deep = numbers_of(expected.supervision, NumberType::float64, R);
    for (double& loss : losses) loss *= tau;
    for (std::int64_t row = 0; row < R; ++row) losses[row / T] += costs[row] + deep[row];
    const double distance = relative_distance(numbers_of(ours.loss, result, U), losses);
    CHECK(distance <= 2e-6, "the units' losses: %g", distance);
    return;
  }
  const double wanted[4] = {sums.task / row_count, sums.supervision / row_count, sums.regulariser / unit_count,
                            (sums.task + sums.supervision) / row_count + tau * sums.regulariser / unit_count};
  const std::vector<char>* got[4] = {&ours.task, &ours.supervision, &ours.regulariser, &ours.loss};
  for (int i = 0; i < 4; ++i) {
    const double value = numbers_of(*got[i], result, 1)[0];
    const bool same = std::fabs(value - wanted[i]) <= 2e-6 * std::fabs(wanted[i]) + 1e-15 ||
                      (std::isnan(value) && std::isnan(wanted[i]));
    CHECK(same, "part %d is %.9g, not %.9g (U %lld, T %lld, C %lld)", i, value, wanted[i], static_cast<long long>(U),
          static_cast<long long>(T), static_cast<long long>(C));
  }
}

// One row of three has a label that is no class: its gradients and the sums are NaN, the others' are not.
void a_wrong_label_is_nan_and_touches_nothing_else(bool smooth) {
  const std::vector<float> logits = normal(2 * 3 * 4, 1.0), halting = normal(2 * 3, 1.0);
  const std::vector<std::int64_t> labels = {1, smooth ? -7 : 4000000000, 3};
  std::vector<float> grad_logits(logits.size()), grad_halting(halting.size()), parts(4), log_answer(3 * 4);
  gpu::HaltingTask task{};
  task.blocks = 2, task.units = 3, task.tokens = 1, task.classes = 4;
  task.logits = logits.data(), task.logits_stride = 12, task.halting = halting.data(), task.halting_stride = 3;
  task.labels = labels.data(), task.labels_type = NumberType::int64, task.ignore_index = -100;
  task.class_weight.all = task.alpha.all = task.grad_loss.all = 1.0;
  task.label_smoothing = smooth ? 0.1 : 0.0;
  task.tau = 0.1;
  task.grad_logits = grad_logits.data(), task.grad_logits_stride = 12, task.grad_halting = grad_halting.data();
  task.task = &parts[0], task.supervision = &parts[1], task.regulariser = &parts[2], task.loss = &parts[3];
  task.log_answer = log_answer.data();
  std::vector<double> scratch(static_cast<std::size_t>(gpu::halting_scratch(task)), NAN);
  task.scratch = scratch.data();
  gpu::halting_loss(task, nullptr);
  CHECK(std::isnan(parts[0]) && std::isnan(parts[3]) && std::isfinite(parts[2]), "%g %g %g", parts[0], parts[3],
        parts[2]);
  for (std::size_t i = 0; i < grad_logits.size(); ++i) {
    CHECK(std::isnan(grad_logits[i]) == (i / 4 % 3 == 1), "gradient %zu is %g", i, grad_logits[i]);
  }
  CHECK(std::isnan(grad_halting[1]) && std::isfinite(grad_halting[0]) && std::isfinite(grad_halting[2]), "%g %g %g",
        grad_halting[0], grad_halting[1], grad_halting[2]);
  for (float x : log_answer) CHECK(std::isfinite(x), "an answer is %g", x);
}

// ---------------------------------------------------------------------------------------------- exits
void the_exits_are_those_of_the_cpu(std::int64_t N, std::int64_t U, std::int64_t T, std::int64_t C, bool masked,
                                    double delta) {
  const std::int64_t R = U * T;
  const std::vector<float> logits = normal(N * R * C, 6.0);
  std::vector<float> halting = normal(N * U, 3.0);
  for (float& u : halting) u -= 4.0f;
  std::vector<unsigned char> valid(static_cast<std::size_t>(R));
  for (std::int64_t i = 0; i < R; ++i) valid[i] = i % 4 != 1 && i / T != 2;
  std::vector<std::int64_t> exits(static_cast<std::size_t>(U), -1), expected_exits = exits;
  std::vector<double> answer(static_cast<std::size_t>(R * C), NAN), full = answer, expected = answer,
                                                                       expected_full = answer;
  ptrain::ExitTask core{};
  core.blocks = N, core.units = U, core.tokens = T, core.classes = C;
  core.logits = logits.data(), core.logits_stride = R * C, core.halting = halting.data(), core.halting_stride = U;
  core.valid = masked ? valid.data() : nullptr;
  core.delta = delta;
  core.in_double = true;
  core.exit_block = expected_exits.data(), core.log_answer = expected.data(), core.full_log_answer = expected_full.data();
  ptrain::halting_exit(core);
  gpu::ExitTask task{};
  task.blocks = N, task.units = U, task.tokens = T, task.classes = C;
  task.logits = logits.data(), task.logits_stride = R * C, task.halting = halting.data(), task.halting_stride = U;
  task.valid = core.valid;
  task.delta = delta;
  task.in_double = true;
  task.exit_block = exits.data(), task.log_answer = answer.data(), task.full_log_answer = full.data();
  std::vector<double> scratch(static_cast<std::size_t>(gpu::exit_scratch(task)), NAN);
  task.scratch = scratch.data();
  gpu::halting_exit(task, nullptr);
  std::int64_t early = 0;
  for (std::int64_t unit = 0; unit < U; ++unit) {
    CHECK(exits[unit] == expected_exits[unit], "unit %lld stops at %lld, not %lld", static_cast<long long>(unit),
          static_cast<long long>(exits[unit]), static_cast<long long>(expected_exits[unit]));
    early += exits[unit] < N;
  }
  CHECK(early > 0, "no unit of %lld stops early", static_cast<long long>(U));
  CHECK(relative_distance(answer, expected) < 1e-12, "answers: %g", relative_distance(answer, expected));
  CHECK(relative_distance(full, expected_full) < 1e-12, "full answers: %g", relative_distance(full, expected_full));
}

}  // namespace

int main() {
  for (Reduction reduction : {Reduction::mean, Reduction::sum, Reduction::none, Reduction::given_mean}) {
    Case plain{12, 37, 1, 2};
    plain.reduction = reduction;
    plain.deep = true;
    the_loss_is_that_of_the_cpu(plain);
    Case sentences{5, 6, 7, 9};
    sentences.reduction = reduction;
    sentences.weighted = true;
    sentences.int32_labels = true;
    sentences.per_row_grads = true;
    the_loss_is_that_of_the_cpu(sentences);
    Case soft{4, 5, 3, 40};
    soft.reduction = reduction;
    soft.soft = soft.deep = soft.weighted = true;
    soft.smoothing = 0.1;
    the_loss_is_that_of_the_cpu(soft);
  }
  for (bool per_row : {false, true}) {
    Case masked{3, 6, 4, 3};
    masked.masked = true;
    masked.mask_per_row = per_row;
    masked.smoothing = 0.2;
    masked.in_place = true;
    the_loss_is_that_of_the_cpu(masked);
  }
  for (NumberType type : {NumberType::bfloat16, NumberType::float16, NumberType::float64}) {
    Case typed{6, 9, 1, 5};
    typed.logits_type = type;
    typed.halting_type = type == NumberType::float64 ? NumberType::float32 : type;
    typed.in_place = true;
    the_loss_is_that_of_the_cpu(typed);
    typed.soft = true;
    the_loss_is_that_of_the_cpu(typed);
  }
  for (double spread : {30.0, 1e3, 1e5}) {
    Case wild{12, 33, 1, 3};
    wild.logits_spread = spread;
    wild.halting_spread = spread;
    the_loss_is_that_of_the_cpu(wild);
    wild.smoothing = 0.1;
    the_loss_is_that_of_the_cpu(wild);
  }
  for (float u : {-300.0f, 300.0f, 1e30f}) {
    Case certain{6, 3, 1, 4};
    certain.halting_everywhere = u;
    the_loss_is_that_of_the_cpu(certain);
  }
  for (std::int64_t classes : {1, 33, 129, 1000}) the_loss_is_that_of_the_cpu({3, 3, 1, classes});
  Case wide{2, 2, 2, 300};
  wide.smoothing = 0.1;
  the_loss_is_that_of_the_cpu(wide);
  for (std::int64_t blocks : {1, 24, 100, 700}) the_loss_is_that_of_the_cpu({blocks, 5, 1, 2});
  the_loss_is_that_of_the_cpu({3, 0, 1, 2});
  a_wrong_label_is_nan_and_touches_nothing_else(false);
  a_wrong_label_is_nan_and_touches_nothing_else(true);
  the_exits_are_those_of_the_cpu(12, 40, 1, 2, false, 0.0);
  the_exits_are_those_of_the_cpu(6, 9, 5, 3, true, 0.0);
  the_exits_are_those_of_the_cpu(6, 9, 1, 40, true, 0.1);
  the_exits_are_those_of_the_cpu(4, 2, 1, 300, false, 0.5);
  if (failures == 0) std::puts("test_cuda_halting: all checks passed");
  return failures == 0 ? 0 : 1;
}
