// The halting loss and its gradients: units, then rows, then units again, then the sums.
//
// Logarithms of probabilities, of which only differences are used, are in double; what is then exponentiated is
// of moderate size, and in float unless an input is float64. So the gradients are right to float's precision at
// any scale of the logits.
#include "halting.cuh"

namespace ptrain::cuda {
namespace {

constexpr int unit_threads = 128;
constexpr int sum_threads = 256;
constexpr int shared_limit = 46 * 1024;  // every device gives 48 KiB, the sums of a block included

// The parts of the scratch memory, in doubles.
struct Room {
  double* log_w;      // [N, U], log w_n; later F_n
  double* p;          // [N, U]
  double* q;          // [N, U], 1 - p_n
  double* pulled;     // [N, R], the row's part of the task's gradient times R_n
  double* pulled_by;  // [N, U], the sum of that over the unit's rows
  double* answer;     // [R, C], log a_N, if every class has a target
  double* flags;      // [U], 1: regularised, 2: a row with something to learn, 3: both
  double* of_units;   // [blocks of units, 3]: weight of rows, units, regulariser
  double* of_rows;    // [blocks of rows, 2]: task loss, supervision
  double* totals;     // row count, unit count, sum of the regulariser
};

__host__ __device__ inline std::int64_t up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

__host__ __device__ inline bool is_dense(const HaltingTask& task) {
  return task.soft_labels != nullptr || task.label_smoothing != 0.0;
}

// How the work is cut: threads per unit and row, and blocks.
struct Cut {
  int unit_lanes, row_lanes, row_threads, row_bytes;
  std::int64_t unit_blocks, row_blocks;
};

constexpr std::int64_t bytes_per_block_of_network(bool in_double) { return in_double ? 32 : 20; }

Cut cut_of(const HaltingTask& task) {
  Cut cut{};
  cut.unit_lanes = task.tokens > 1 ? warp_size : 1;
  cut.unit_blocks = up(task.units, unit_threads / cut.unit_lanes);
  const std::int64_t bytes = task.blocks * bytes_per_block_of_network(task.in_double);
  cut.row_threads = task.classes > 256 ? 256 : 128;
  cut.row_lanes = lanes_for(task.classes, cut.row_threads);
  while (cut.row_threads / cut.row_lanes * bytes > shared_limit && cut.row_threads > warp_size &&
         cut.row_lanes < cut.row_threads) {
    cut.row_threads /= 2;
  }
  while (cut.row_threads / cut.row_lanes * bytes > shared_limit && cut.row_lanes < warp_size) cut.row_lanes *= 2;
  cut.row_bytes = static_cast<int>(cut.row_threads / cut.row_lanes * bytes);
  cut.row_blocks = up(task.units * task.tokens, cut.row_threads / cut.row_lanes);
  return cut;
}

// Lays the parts out from `from`, and returns how many doubles they are.
std::int64_t lay_out(const HaltingTask& task, const Cut& cut, double* from, Room* room) {
  const std::int64_t per_unit = task.blocks * task.units;
  const std::int64_t rows = task.units * task.tokens;
  std::int64_t size = 0;
  const auto take = [&](std::int64_t count) {
    double* taken = from == nullptr ? nullptr : from + size;
    size += count;
    return taken;
  };
  const bool by_halting = task.grad_halting != nullptr;
  room->log_w = take(per_unit);
  room->p = take(per_unit);
  room->q = take(per_unit);
  room->pulled = by_halting ? take(task.blocks * rows) : nullptr;
  room->pulled_by = by_halting && task.tokens != 1 ? take(per_unit) : room->pulled;
  room->answer = is_dense(task) ? take(rows * task.classes) : nullptr;
  room->flags = take(task.units);
  room->of_units = take(3 * cut.unit_blocks);
  room->of_rows = take(2 * cut.row_blocks);
  room->totals = take(3);
  return size;
}

// ------------------------------------------------------------------------------------------------ labels
struct Label {
  std::int64_t number;  // -1: none, or none that is a class
  bool labelled;
  bool wrong;
};

__device__ Label label_of(const HaltingTask& task, std::int64_t row) {
  const std::int64_t number = task.labels_type == NumberType::int32
                                  ? static_cast<const std::int32_t*>(task.labels)[row]
                                  : static_cast<const std::int64_t*>(task.labels)[row];
  const bool labelled = number != task.ignore_index;
  const bool wrong = labelled && (number < 0 || number >= task.classes);
  return {labelled && !wrong ? number : -1, labelled, wrong};
}

__device__ bool has_soft_label(const HaltingTask& task, std::int64_t row) {
  for (std::int64_t c = 0; c < task.classes; ++c) {
    if (number_at<double>(task.soft_labels, task.soft_type, row * task.classes + c) != 0.0) return true;
  }
  return false;
}

// What class c of a labelled row weighs, where that is not only the label's.
__device__ double target_of(const HaltingTask& task, std::int64_t row, const Label& label, std::int64_t c) {
  if (label.wrong) return NAN;
  double target = c == label.number ? 1.0 : 0.0;
  if (task.soft_labels != nullptr) {
    target = number_at<double>(task.soft_labels, task.soft_type, row * task.classes + c);
  }
  if (task.label_smoothing != 0.0) {
    target = target * (1.0 - task.label_smoothing) + task.label_smoothing / static_cast<double>(task.classes);
  }
  return target * at(task.class_weight, c);
}

// ------------------------------------------------------------------------------------------------- units
// p, w and the regulariser of a unit, whether it counts, and what its rows weigh in a mean.
__global__ void __launch_bounds__(unit_threads)
    units_forward(const __grid_constant__ HaltingTask task, const __grid_constant__ Room room, int lanes) {
  const Group group(lanes);
  const std::int64_t own = static_cast<std::int64_t>(blockIdx.x) * (unit_threads / lanes) + group.index;
  const bool active = own < task.units;
  const std::int64_t unit = active ? own : task.units - 1;  // it stays with its warp, and writes nothing
  const std::int64_t blocks = task.blocks, units = task.units;

  double weight = 0.0, any_mask = 0.0, any_label = 0.0, any_learns = 0.0;
  for (std::int64_t t = group.lane; t < task.tokens; t += lanes) {
    const std::int64_t row = unit * task.tokens + t;
    if (task.mask != nullptr && task.mask_is_per_row && task.mask[row] != 0) any_mask = 1.0;
    if (task.soft_labels != nullptr) {
      if (!has_soft_label(task, row)) continue;
      any_label = any_learns = 1.0;
      weight += 1.0;
    } else {
      const Label label = label_of(task, row);
      if (!label.labelled) continue;
      const double of_class = at(task.class_weight, label.wrong ? 0 : label.number);
      any_label = 1.0;
      if (is_dense(task) || label.wrong || of_class != 0.0) any_learns = 1.0;
      weight += of_class;
    }
  }
  weight = group.sum(weight);
  any_mask = group.max(any_mask);
  any_label = group.max(any_label);
  any_learns = group.max(any_learns);
  if (task.mask != nullptr && !task.mask_is_per_row) any_mask = task.mask[unit] != 0 ? 1.0 : 0.0;
  const bool counted = (task.mask != nullptr ? any_mask : any_label) != 0.0;

  double regulariser = 0.0;
  if (active && group.lane == 0) {
    // 1 - p is summed up from positive terms, p_{n-1} (1 - h_n): no cancellation.
    double p = 1.0, q = 0.0, log_p = 0.0;
    for (std::int64_t n = 0; n < blocks; ++n) {
      const double u = number_at<double>(task.halting, task.halting_type, n * task.halting_stride + unit);
      const double tail = exp(-fabs(u));
      const double larger = 1.0 / (1.0 + tail), smaller = tail * larger;
      const double h = u >= 0.0 ? larger : smaller, stop = u >= 0.0 ? smaller : larger;
      const std::int64_t i = n * units + unit;
      room.log_w[i] = log_p;
      q += p * stop;
      p *= h;
      log_p += log_sigmoid(u);
      room.p[i] = p;
      room.q[i] = q;
      regulariser += at(task.alpha, n) * h + at(task.beta, n) * p;
      if (task.halting_p != nullptr) put_result(task.halting_p, task.in_double, i, p);
    }
    double log_after = 0.0;
    for (std::int64_t n = blocks - 1; n >= 0; --n) {
      const std::int64_t i = n * units + unit;
      const double log_reached = room.log_w[i];
      room.log_w[i] = log_reached + log_after;
      if (task.exit_weights != nullptr) {
        put_result(task.exit_weights, task.in_double, i, exp(log_reached + log_after));
      }
      log_after += n > 0 ? log_one_minus_exp(log_reached) : 0.0;
    }
    if (!counted) regulariser = 0.0;
    room.flags[unit] = (counted ? 1.0 : 0.0) + (any_learns != 0.0 ? 2.0 : 0.0);
    if (task.reduction == Reduction::none && task.regulariser != nullptr) {
      put_result(task.regulariser, task.in_double, unit, regulariser);
    }
  }
  const bool adds = active && group.lane == 0;
  weight = sum_of_block(adds ? weight : 0.0);
  const double count = sum_of_block(adds && counted ? 1.0 : 0.0);
  regulariser = sum_of_block(regulariser);
  if (threadIdx.x == 0) {
    double* sums = room.of_units + 3 * static_cast<std::int64_t>(blockIdx.x);
    sums[0] = weight;
    sums[1] = count;
    sums[2] = regulariser;
  }
}

// What sums are divided by, once the units are counted. One block.
__global__ void __launch_bounds__(sum_threads)
    count_units(const __grid_constant__ HaltingTask task, const __grid_constant__ Room room,
                std::int64_t unit_blocks) {
  double weight = 0.0, count = 0.0, regulariser = 0.0;
  for (std::int64_t i = threadIdx.x; i < unit_blocks; i += sum_threads) {
    weight += room.of_units[3 * i];
    count += room.of_units[3 * i + 1];
    regulariser += room.of_units[3 * i + 2];
  }
  weight = sum_of_block(weight);
  count = sum_of_block(count);
  regulariser = sum_of_block(regulariser);
  if (threadIdx.x != 0) return;
  if (task.reduction == Reduction::given_mean) {
    weight = at(task.row_count, 0);
    count = at(task.unit_count, 0);
  } else if (task.reduction == Reduction::mean) {
    if (task.empty_is_zero && weight == 0.0) weight = 1.0;
    if (task.empty_is_zero && count == 0.0) count = 1.0;
  } else {
    weight = count = 1.0;
  }
  room.totals[0] = weight;
  room.totals[1] = count;
  room.totals[2] = regulariser;
}

// The gradient by the halting logits, from the sums over each unit's rows of its tasks' R_n. A thread per unit.
__global__ void __launch_bounds__(unit_threads)
    units_backward(const __grid_constant__ HaltingTask task, const __grid_constant__ Room room) {
  const std::int64_t unit = static_cast<std::int64_t>(blockIdx.x) * unit_threads + threadIdx.x;
  if (unit >= task.units) return;
  const std::int64_t blocks = task.blocks, units = task.units;
  const bool counted = room.flags[unit] == 1.0 || room.flags[unit] == 3.0;
  const bool learns = room.flags[unit] >= 2.0;
  double scale = task.tau == 0.0 ? 0.0 : task.tau * at(task.grad_loss, unit);
  scale += at(task.grad_regulariser, unit);
  scale = counted && scale != 0.0 ? scale / room.totals[1] : 0.0;
  double sum = 0.0;
  for (std::int64_t n = 0; n < blocks; ++n) {  // F_n = R_1 + ... + R_n: only positive terms
    sum += room.pulled_by[n * units + unit];
    room.log_w[n * units + unit] = sum;
  }
  double pull = 0.0, beta_p = 0.0;
  for (std::int64_t n = blocks - 1; n >= 0; --n) {
    const std::int64_t i = n * units + unit;
    const double p = room.p[i], q = room.q[i];
    if (n + 1 < blocks) {
      // Multiplied by 1 - h <= 1 - p below, so below this it would come to nothing.
      const double odds = q < 1e-290 ? 0.0 : p / q;
      pull += odds * room.log_w[i] - room.pulled_by[i + units];
    }
    beta_p += at(task.beta, n) * p;
    const double u = number_at<double>(task.halting, task.halting_type, n * task.halting_stride + unit);
    const double tail = exp(-fabs(u));
    const double larger = 1.0 / (1.0 + tail), smaller = tail * larger;
    const double h = u >= 0.0 ? larger : smaller, stop = u >= 0.0 ? smaller : larger;
    double grad = 0.0;
    if (learns || scale != 0.0) grad = stop * (pull + scale * (at(task.alpha, n) * h + beta_p));
    put_number(task.grad_halting, task.halting_type, i, grad);
  }
}

// pulled_by[n, u] = sum over the unit's tokens. A warp for each.
__global__ void __launch_bounds__(unit_threads)
    sum_tokens(const __grid_constant__ HaltingTask task, const __grid_constant__ Room room) {
  const Group group(warp_size);
  const std::int64_t own = static_cast<std::int64_t>(blockIdx.x) * (unit_threads / warp_size) + group.index;
  const bool active = own < task.blocks * task.units;
  double sum = 0.0;
  for (std::int64_t t = group.lane; active && t < task.tokens; t += warp_size) {
    sum += room.pulled[own * task.tokens + t];  // [N, U, T]
  }
  sum = group.sum(sum);
  if (active && group.lane == 0) room.pulled_by[own] = sum;
}

// -------------------------------------------------------------------------------------------------- rows
// Everything of a row: its cost, the gradient by its logits, and its pull on the halting logits. A group of
// lanes per row, each with every lanes-th class. The numbers per block of the network lie in shared memory.
template <typename Real, bool dense>
__global__ void __launch_bounds__(256, 2)
    rows_kernel(const __grid_constant__ HaltingTask task, const __grid_constant__ Room room, int lanes) {
  const Group group(lanes);
  const int groups = static_cast<int>(blockDim.x) / lanes;
  const std::int64_t rows = task.units * task.tokens, blocks = task.blocks, classes = task.classes;
  const std::int64_t own = static_cast<std::int64_t>(blockIdx.x) * groups + group.index;
  const bool active = own < rows;
  const std::int64_t row = active ? own : rows - 1;  // it stays with its warp, and writes nothing
  const std::int64_t unit = row / task.tokens;

  double* const log_sum = shared_memory() + group.index;  // log sum e^z; later the share of the block
  Real* const most = reinterpret_cast<Real*>(shared_memory() + blocks * groups) + group.index;
  Real* const total = most + blocks * groups;   // sum e^(z - most)
  Real* const others = total + blocks * groups;  // the same without the label's
  const auto z = [&](std::int64_t n, std::int64_t c) {
    return number_at<Real>(task.logits, task.logits_type, n * task.logits_stride + row * classes + c);
  };
  const auto wide_z = [&](std::int64_t n, std::int64_t c) { return static_cast<double>(z(n, c)); };

  Label label{-1, true, false};
  if (task.soft_labels == nullptr) label = label_of(task, row);
  double weight = 0.0;  // of all classes of the row
  bool learns = false;
  if (dense) {
    double any = 0.0;
    for (std::int64_t c = group.lane; c < classes && task.soft_labels != nullptr; c += lanes) {
      if (number_at<double>(task.soft_labels, task.soft_type, row * classes + c) != 0.0) any = 1.0;
    }
    any = group.max(any);
    learns = task.soft_labels != nullptr ? any != 0.0 : label.labelled;
    for (std::int64_t c = group.lane; c < classes && learns; c += lanes) weight += target_of(task, row, label, c);
    weight = group.sum(weight);
  } else {
    if (label.labelled) weight = label.wrong ? NAN : at(task.class_weight, label.number);
    learns = weight != 0.0;
  }

  // The softmax of each block.
  for (std::int64_t n = 0; n < blocks; ++n) {
    Real largest = static_cast<Real>(-INFINITY);
    for (std::int64_t c = group.lane; c < classes; c += lanes) {
      const Real x = z(n, c);
      largest = x > largest ? x : largest;
    }
    largest = group.max(largest);
    Real sum = 0;
    for (std::int64_t c = group.lane; c < classes; c += lanes) {
      if (c != label.number) sum += exp(z(n, c) - largest);
    }
    sum = group.sum(sum);
    if (group.lane == 0) {
      most[n * groups] = largest;
      others[n * groups] = sum;
    }
  }
  group.sync();
  for (std::int64_t n = group.lane; n < blocks; n += lanes) {
    const Real largest = most[n * groups];
    Real sum = others[n * groups];
    if (label.number >= 0) sum += exp(z(n, label.number) - largest);
    total[n * groups] = sum;
    log_sum[n * groups] = static_cast<double>(largest) + log(static_cast<double>(sum));
  }
  group.sync();

  // log a_N of each class.
  const auto log_part = [&](std::int64_t n, std::int64_t c) {  // log(w_n y_n,c)
    return room.log_w[n * task.units + unit] + (wide_z(n, c) - log_sum[n * groups]);
  };
  double cost = 0.0, deep_cost = 0.0;
  if (dense || task.log_answer != nullptr) {
    for (std::int64_t c = group.lane; c < classes; c += lanes) {
      double largest = -INFINITY;
      for (std::int64_t n = 0; n < blocks; ++n) {
        const double x = log_part(n, c);
        largest = x <= largest ? largest : x;  // NaN comes through
      }
      Real sum = 0;
      for (std::int64_t n = 0; n < blocks; ++n) sum += exp(static_cast<Real>(log_part(n, c) - largest));
      const double log_answer = largest == -INFINITY ? largest : largest + log(static_cast<double>(sum));
      if (active && task.log_answer != nullptr) {
        put_result(task.log_answer, task.in_double, row * classes + c, log_answer);
      }
      if (!dense) continue;
      if (active) room.answer[row * classes + c] = log_answer;
      const double target = learns ? target_of(task, row, label, c) : 0.0;
      if (target != 0.0) cost -= target * log_answer;
    }
  }
  group.sync();

  const double row_count = room.totals[0], from_loss = at(task.grad_loss, unit);
  const double task_scale = (from_loss + at(task.grad_task, row)) / row_count;
  const double deep_scale = (from_loss + at(task.grad_supervision, row)) / row_count;
  if (dense) {
    cost = group.sum(cost);
    for (std::int64_t n = 0; n < blocks; ++n) {
      const double eta = task.has_eta ? at(task.eta, n) : 0.0;
      double pull = 0.0;
      for (std::int64_t c = group.lane; c < classes && learns; c += lanes) {
        const double target = target_of(task, row, label, c);
        if (target == 0.0) continue;
        pull += target * exp(static_cast<Real>(log_part(n, c) - room.answer[row * classes + c]));
        if (eta != 0.0) deep_cost -= eta * target * (wide_z(n, c) - log_sum[n * groups]);
      }
      pull = group.sum(pull);
      if (active && room.pulled != nullptr && group.lane == 0) {
        room.pulled[n * rows + row] = learns ? task_scale * pull : 0.0;
      }
      for (std::int64_t c = group.lane; c < classes && active && task.grad_logits != nullptr; c += lanes) {
        Real grad = 0;
        if (learns) {
          const double target = target_of(task, row, label, c);
          const Real y = exp(z(n, c) - most[n * groups]) / total[n * groups];
          double share = 0.0;
          if (target != 0.0) {
            share = target * exp(static_cast<Real>(log_part(n, c) - room.answer[row * classes + c]));
          }
          double by_task = task_scale * (y * pull - share);
          if (eta != 0.0) by_task += deep_scale * eta * (y * weight - target);
          grad = static_cast<Real>(by_task);
        }
        put_number(task.grad_logits, task.logits_type, n * task.grad_logits_stride + row * classes + c, grad);
      }
    }
    deep_cost = group.sum(deep_cost);
  } else {
    // Only the label's class matters: its shares of the answer, one block of the network per lane.
    double largest = -INFINITY;
    for (std::int64_t n = group.lane; n < blocks; n += lanes) {
      double x = 0.0;
      if (label.number >= 0) {
        const double log_y = wide_z(n, label.number) - log_sum[n * groups];
        x = room.log_w[n * task.units + unit] + log_y;
        const double eta = task.has_eta && learns ? at(task.eta, n) : 0.0;
        if (eta != 0.0) deep_cost -= eta * weight * log_y;
      }
      log_sum[n * groups] = x;
      largest = x <= largest ? largest : x;
    }
    largest = group.max(largest);
    double sum = 0.0;
    for (std::int64_t n = group.lane; n < blocks; n += lanes) {
      const double share = exp(log_sum[n * groups] - largest);
      log_sum[n * groups] = share;
      sum += share;
    }
    sum = group.sum(sum);
    deep_cost = group.sum(deep_cost);
    if (learns) cost = -weight * (largest + log(sum));
    if (learns && label.wrong && task.has_eta) deep_cost = NAN;
    for (std::int64_t n = group.lane; n < blocks; n += lanes) {
      const double share = log_sum[n * groups] / sum;
      log_sum[n * groups] = share;
      if (active && room.pulled != nullptr) {
        room.pulled[n * rows + row] = learns ? task_scale * weight * share : 0.0;
      }
    }
    group.sync();
    for (std::int64_t n = 0; n < blocks && active && task.grad_logits != nullptr; ++n) {
      const double eta = task.has_eta ? at(task.eta, n) : 0.0;
      double pull = task_scale * weight * log_sum[n * groups];
      if (eta != 0.0) pull += deep_scale * weight * eta;
      const Real factor = learns ? static_cast<Real>(pull) / total[n * groups] : Real{0};
      for (std::int64_t c = group.lane; c < classes; c += lanes) {
        Real grad = 0;
        if (learns) {
          // The label's own is the others' sum: 1 - y would lose what is left of a sure answer.
          grad = c == label.number ? -factor * others[n * groups] : factor * exp(z(n, c) - most[n * groups]);
        }
        put_number(task.grad_logits, task.logits_type, n * task.grad_logits_stride + row * classes + c, grad);
      }
    }
  }

  const bool adds = active && group.lane == 0;
  if (adds && task.reduction == Reduction::none) {
    if (task.task != nullptr) put_result(task.task, task.in_double, row, cost);
    if (task.supervision != nullptr) put_result(task.supervision, task.in_double, row, deep_cost);
  }
  cost = sum_of_block(adds ? cost : 0.0);
  deep_cost = sum_of_block(adds ? deep_cost : 0.0);
  if (threadIdx.x == 0) {
    double* sums = room.of_rows + 2 * static_cast<std::int64_t>(blockIdx.x);
    sums[0] = cost;
    sums[1] = deep_cost;
  }
}

// -------------------------------------------------------------------------------------------------- sums
__device__ double rounded(bool in_double, double value) { return in_double ? value : static_cast<float>(value); }

// The four parts of the reduced loss. One block.
__global__ void __launch_bounds__(sum_threads)
    sum_rows(const __grid_constant__ HaltingTask task, const __grid_constant__ Room room, std::int64_t row_blocks) {
  double cost = 0.0, deep_cost = 0.0;
  for (std::int64_t i = threadIdx.x; i < row_blocks; i += sum_threads) {
    cost += room.of_rows[2 * i];
    deep_cost += room.of_rows[2 * i + 1];
  }
  cost = sum_of_block(cost);
  deep_cost = sum_of_block(deep_cost);
  if (threadIdx.x != 0) return;
  const bool wide = task.in_double;
  const double task_loss = rounded(wide, cost / room.totals[0]);
  const double supervision = rounded(wide, deep_cost / room.totals[0]);
  const double regulariser = rounded(wide, room.totals[2] / room.totals[1]);
  double loss = task_loss + supervision;
  if (task.tau != 0.0) loss += task.tau * regulariser;
  if (task.task != nullptr) put_result(task.task, wide, 0, task_loss);
  if (task.supervision != nullptr) put_result(task.supervision, wide, 0, supervision);
  if (task.regulariser != nullptr) put_result(task.regulariser, wide, 0, regulariser);
  if (task.loss != nullptr) put_result(task.loss, wide, 0, loss);
}

// The loss of each unit where nothing is reduced, from its parts. A thread per unit.
__global__ void __launch_bounds__(unit_threads) sum_parts(const __grid_constant__ HaltingTask task) {
  const std::int64_t unit = static_cast<std::int64_t>(blockIdx.x) * unit_threads + threadIdx.x;
  if (unit >= task.units) return;
  const NumberType type = task.in_double ? NumberType::float64 : NumberType::float32;
  double loss = 0.0;
  for (std::int64_t row = unit * task.tokens; row < (unit + 1) * task.tokens; ++row) {
    loss += number_at<double>(task.task, type, row) + number_at<double>(task.supervision, type, row);
  }
  if (task.tau != 0.0) loss += task.tau * number_at<double>(task.regulariser, type, unit);
  put_result(task.loss, task.in_double, unit, loss);
}

Failure launch_rows(const HaltingTask& task, const Room& room, const Cut& cut, Stream stream) {
  const auto kernel = task.in_double ? (is_dense(task) ? rows_kernel<double, true> : rows_kernel<double, false>)
                                     : (is_dense(task) ? rows_kernel<float, true> : rows_kernel<float, false>);
  return launch_with_memory(kernel, cut.row_blocks, cut.row_threads, cut.row_bytes, stream, task, room,
                            cut.row_lanes);
}

}  // namespace

std::int64_t halting_scratch(const HaltingTask& task) {
  Room room;
  return lay_out(task, cut_of(task), nullptr, &room);
}

const char* halting_refusal(const HaltingTask& task) {
  return cut_of(task).row_bytes > shared_limit ? "more blocks than the CUDA kernel has shared memory for" : nullptr;
}

Failure halting_loss(const HaltingTask& task, Stream stream) {
  const Cut cut = cut_of(task);
  Room room;
  lay_out(task, cut, task.scratch, &room);
  const bool by_halting = task.grad_halting != nullptr;
  const std::int64_t unit_blocks = up(task.units, unit_threads);
  Failure failure = launch(units_forward, cut.unit_blocks, unit_threads, stream, task, room, cut.unit_lanes);
  if (failure == nullptr) {
    failure = launch(count_units, std::int64_t{1}, sum_threads, stream, task, room, cut.unit_blocks);
  }
  if (failure == nullptr) failure = launch_rows(task, room, cut, stream);
  if (failure == nullptr && by_halting && task.tokens != 1) {
    const std::int64_t blocks = up(task.blocks * task.units, unit_threads / warp_size);
    failure = launch(sum_tokens, blocks, unit_threads, stream, task, room);
  }
  if (failure == nullptr && by_halting) {
    failure = launch(units_backward, unit_blocks, unit_threads, stream, task, room);
  }
  if (failure == nullptr && task.loss != nullptr && task.reduction != Reduction::none) {
    failure = launch(sum_rows, std::int64_t{1}, sum_threads, stream, task, room, cut.row_blocks);
  }
  if (failure == nullptr && task.loss != nullptr && task.reduction == Reduction::none) {
    failure = launch(sum_parts, unit_blocks, unit_threads, stream, task);
  }
  return failure;
}

}  // namespace ptrain::cuda
