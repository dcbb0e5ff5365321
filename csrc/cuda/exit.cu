// The exit rule: what the units' halting logits say, a walk through the rows, the exits, and the answers there.
#include "halting.cuh"

namespace ptrain::cuda {
namespace {

constexpr int exit_threads = 128;
// The rule must hold by more than the rounding of whoever recomputes the answer in float32.
constexpr double exit_slack = 1e-6;

struct ExitRoom {
  double* log_p;         // [N, U], log p_{n-1}
  double* log_q;         // [N, U], log(1 - p_{n-1})
  double* kept;          // [N, U], (1 - p_n)^(N - n)
  double* answer;        // [R, C], log a_n of the block that the walk is at
  unsigned char* stops;  // [N, R], whether the row's answer can no longer change
};

std::int64_t lay_out_exit(const ExitTask& task, double* from, ExitRoom* room) {
  const std::int64_t per_unit = task.blocks * task.units, rows = task.units * task.tokens;
  if (from != nullptr) {
    room->log_p = from;
    room->log_q = from + per_unit;
    room->kept = from + 2 * per_unit;
    room->answer = from + 3 * per_unit;
    room->stops = reinterpret_cast<unsigned char*>(room->answer + rows * task.classes);
  }
  return 3 * per_unit + rows * task.classes + (task.blocks * rows + 7) / 8;
}

// A thread per unit.
__global__ void __launch_bounds__(exit_threads)
    courses(const __grid_constant__ ExitTask task, const __grid_constant__ ExitRoom room) {
  const std::int64_t unit = static_cast<std::int64_t>(blockIdx.x) * exit_threads + threadIdx.x;
  if (unit >= task.units) return;
  double log_p = 0.0;
  for (std::int64_t n = 0; n < task.blocks; ++n) {
    const std::int64_t i = n * task.units + unit;
    room.log_p[i] = log_p;
    room.log_q[i] = log_one_minus_exp(log_p);
    log_p += log_sigmoid(number_at<double>(task.halting, task.halting_type, n * task.halting_stride + unit));
    room.kept[i] = exp(static_cast<double>(task.blocks - 1 - n) * log_one_minus_exp(log_p));
  }
}

// Through all blocks, a group of lanes per row. At first it notes where the rule holds, and the answer after all
// blocks; then, with the exits known, the answers there.
__global__ void __launch_bounds__(256)
    walk(const __grid_constant__ ExitTask task, const __grid_constant__ ExitRoom room, int lanes, bool exits_known) {
  const Group group(lanes);
  const int groups = static_cast<int>(blockDim.x) / lanes;
  const std::int64_t rows = task.units * task.tokens, classes = task.classes;
  const std::int64_t own = static_cast<std::int64_t>(blockIdx.x) * groups + group.index;
  const bool active = own < rows;
  const std::int64_t row = active ? own : rows - 1;  // it stays with its warp, and writes nothing
  const std::int64_t unit = row / task.tokens;
  double* const answer = room.answer + row * classes;
  const std::int64_t exit_block = exits_known ? task.exit_block[unit] : 0;

  for (std::int64_t n = 0; n < task.blocks; ++n) {
    const auto z = [&](std::int64_t c) {
      return number_at<double>(task.logits, task.logits_type, n * task.logits_stride + row * classes + c);
    };
    double largest = -INFINITY, sum = 0.0;
    for (std::int64_t c = group.lane; c < classes; c += lanes) largest = z(c) > largest ? z(c) : largest;
    largest = group.max(largest);
    for (std::int64_t c = group.lane; c < classes; c += lanes) sum += exp(z(c) - largest);
    const double log_sum = log(group.sum(sum));
    const double log_p = room.log_p[n * task.units + unit], log_q = room.log_q[n * task.units + unit];
    double best = -INFINITY, second = -INFINITY, unknown = 0.0;
    for (std::int64_t c = group.lane; c < classes && active; c += lanes) {
      const double fresh = log_p + (z(c) - largest - log_sum);
      const double old = log_q + (n == 0 ? -INFINITY : answer[c]);
      const double high = fresh > old ? fresh : old, low = fresh > old ? old : fresh;
      const double joined = high + log1p(exp(low == -INFINITY ? low : low - high));
      answer[c] = joined;
      if (joined != joined) unknown = 1.0;
      if (joined > best) {
        second = best;
        best = joined;
      } else if (joined > second) {
        second = joined;
      }
      if (exits_known && exit_block == n + 1) put_result(task.log_answer, task.in_double, row * classes + c, joined);
      if (!exits_known && n + 1 == task.blocks) {
        put_result(task.full_log_answer, task.in_double, row * classes + c, joined);
      }
    }
    // The second of the row: where two lanes share the best, it is the best again.
    const double best_of_row = group.max(best);
    const double sharing = group.sum(best == best_of_row ? 1.0 : 0.0);
    const double next = group.max(best == best_of_row ? second : best);
    const double second_of_row = sharing > 1.0 ? best_of_row : next;
    unknown = group.max(unknown);
    if (active && !exits_known && group.lane == 0) {
      const double bound =
          room.kept[n * task.units + unit] * (1.0 + exp(best_of_row) - exp(second_of_row));
      const bool holds = unknown == 0.0 && bound > 1.0 - task.delta + exit_slack;
      room.stops[n * rows + row] = holds || n + 1 == task.blocks;
    }
  }
}

// The first block after which all valid tokens of a unit may stop. A group of lanes per unit.
__global__ void __launch_bounds__(exit_threads)
    find_exits(const __grid_constant__ ExitTask task, const __grid_constant__ ExitRoom room, int lanes) {
  const Group group(lanes);
  const std::int64_t own = static_cast<std::int64_t>(blockIdx.x) * (exit_threads / lanes) + group.index;
  const bool active = own < task.units;
  const std::int64_t rows = task.units * task.tokens;
  double exit_block = 0.0;
  for (std::int64_t n = 0; n < task.blocks; ++n) {
    double goes_on = 0.0;
    for (std::int64_t t = group.lane; active && t < task.tokens; t += lanes) {
      const std::int64_t row = own * task.tokens + t;
      const bool counts = task.valid == nullptr || task.valid[row] != 0;
      if (counts && room.stops[n * rows + row] == 0) goes_on = 1.0;
    }
    goes_on = group.max(goes_on);
    if (exit_block == 0.0 && goes_on == 0.0) exit_block = static_cast<double>(n + 1);
  }
  if (active && group.lane == 0) task.exit_block[own] = static_cast<std::int64_t>(exit_block);
}

}  // namespace

std::int64_t exit_scratch(const ExitTask& task) {
  ExitRoom room;
  return lay_out_exit(task, nullptr, &room);
}

Failure halting_exit(const ExitTask& task, Stream stream) {
  if (task.units == 0) return nullptr;
  ExitRoom room{};
  lay_out_exit(task, task.scratch, &room);
  const int row_threads = task.classes > 256 ? 256 : 128;
  const int row_lanes = lanes_for(task.classes, row_threads);
  const int unit_lanes = task.tokens > 1 ? warp_size : 1;
  const std::int64_t rows_per_block = row_threads / row_lanes, units_per_block = exit_threads / unit_lanes;
  const std::int64_t row_blocks = (task.units * task.tokens + rows_per_block - 1) / rows_per_block;
  Failure failure = launch(courses, (task.units + exit_threads - 1) / exit_threads, exit_threads, stream, task, room);
  if (failure == nullptr) failure = launch(walk, row_blocks, row_threads, stream, task, room, row_lanes, false);
  if (failure == nullptr) {
    failure = launch(find_exits, (task.units + units_per_block - 1) / units_per_block, exit_threads, stream, task,
                     room, unit_lanes);
  }
  if (failure == nullptr) failure = launch(walk, row_blocks, row_threads, stream, task, room, row_lanes, true);
  return failure;
}

}  // namespace ptrain::cuda
