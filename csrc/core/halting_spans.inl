// The loops of the halting loss for one instruction set: a chunk of units after the other.
//
// A chunk's units lie in sixteen lanes, and so do the rows of a tile. The recurrence over blocks is in
// double everywhere; the softmax is in float, with lanes over the rows where classes are few and over the
// classes where they are many. Rows for which that is not enough, and float64 inputs, are computed
// in log space, in double, by exact_rows.
#include "simd.inl"

namespace {

constexpr int lanes = halting_lanes;
constexpr int float_steps = lanes / float_lanes;
constexpr int double_steps = lanes / double_lanes;
// So many vectors are summed in float, and such sums in double: the error does not grow with the classes.
constexpr std::int64_t run_of_floats = 16 * float_lanes;

// Below this the sum of float products that is a class's probability may have lost its small terms.
constexpr float least_float_answer = 1e-25f;
constexpr double least_double_answer = 1e-290;

// ----------------------------------------------------------------------------------- 16-bit floats

void floats_from_bfloat16(const std::uint16_t* from, float* to, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = float_from_bfloat16(from[i]);
}

void floats_from_float16(const std::uint16_t* from, float* to, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = float_from_float16(from[i]);
}

// To nearest, ties to even; NaN stays NaN.
PTRAIN_INLINE FloatWords bfloat16_of(Floats values) {
  const FloatWords bits = (FloatWords)values;
  const FloatWords rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return (values == values ? rounded : FloatWords{} + 0x7fc00000) >> 16;
}

PTRAIN_INLINE FloatWords float16_of(Floats values) {
  const FloatWords bits = (FloatWords)values;
  const FloatWords sign = (bits >> 16) & 0x8000;
  const FloatWords magnitude = bits & 0x7fffffff;
  // Adding one half leaves a multiple of 2^-24, a subnormal's unit, in the low bits.
  const FloatWords subnormal = (FloatWords)((Floats)magnitude + 0.5f) - 0x3f000000;
  const FloatWords normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  FloatWords result = magnitude < (113u << 23) ? subnormal : normal;
  result = magnitude >= 0x47800000u ? FloatWords{} + 0x7c00 : result;
  result = values == values ? result : FloatWords{} + 0x7e00;
  return sign | result;
}

template <FloatWords (*convert)(Floats)>
PTRAIN_INLINE void halves_from_floats(const float* from, std::uint16_t* to, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + float_lanes <= count; i += float_lanes) {
    store(to + i, __builtin_convertvector(convert(load<Floats>(from + i)), HalfBits));
  }
  for (; i < count; ++i) to[i] = static_cast<std::uint16_t>(convert(all(from[i]))[0]);
}

// The numbers as floats: where they are, or in `room`.
const float* as_floats(HaltingType type, const void* from, std::int64_t start, std::int64_t count,
                       float* room) {
  if (type == HaltingType::float32) return static_cast<const float*>(from) + start;
  const auto* halves = static_cast<const std::uint16_t*>(from) + start;
  if (type == HaltingType::bfloat16) {
    floats_from_bfloat16(halves, room, count);
  } else {
    floats_from_float16(halves, room, count);
  }
  return room;
}

PTRAIN_OUTLINE void write_number(HaltingType type, void* to, std::int64_t i, double value) {
  const float single = static_cast<float>(value);
  switch (type) {
    case HaltingType::float64: static_cast<double*>(to)[i] = value; break;
    case HaltingType::float32: static_cast<float*>(to)[i] = single; break;
    case HaltingType::bfloat16:
      static_cast<std::uint16_t*>(to)[i] = static_cast<std::uint16_t>(bfloat16_of(all(single))[0]);
      break;
    default: static_cast<std::uint16_t*>(to)[i] = static_cast<std::uint16_t>(float16_of(all(single))[0]);
  }
}

void write_floats(HaltingType type, const float* from, void* to, std::int64_t start,
                  std::int64_t count) {
  if (type == HaltingType::bfloat16) {
    halves_from_floats<bfloat16_of>(from, static_cast<std::uint16_t*>(to) + start, count);
  } else {
    halves_from_floats<float16_of>(from, static_cast<std::uint16_t*>(to) + start, count);
  }
}

PTRAIN_INLINE void write_result(const HaltingTask& task, void* to, std::int64_t i, double value) {
  if (to != nullptr) halting_write(task.in_double, to, i, value);
}

// ----------------------------------------------------------------------------------- memory of a thread

using Row = double[lanes];
using FloatRow = float[lanes];

struct Turns;

// Arrays over blocks of a value per lane; the size is one chunk's or one tile's.
struct Room {
  // of the units: h, 1 - h, p, 1 - p, w, log w; and sum over tokens of the task gradient's R_n
  Row *h, *stop, *p, *q, *w, *log_w, *pulled;
  // of the rows: w where it is not the units', w y_label then R_n, 1 / S
  Row *row_w, *r, *inverse;
  // of the rows: z_label, max z, sum of e^(z - max) over the other classes; what e^(z - max) is multiplied
  // by to give the gradient, and the label's own gradient
  FloatRow *label_z, *most, *others, *factor, *label_grad, *answer_weight;
  float* exps;      // [N][C][lanes], or [N][lanes][padded C]
  float* staging;   // [lanes * C]
  float* columns;   // [C][lanes], or padded
  float* targets;   // [C][lanes], or [lanes][padded C]
  float* answer;    // likewise
  Turns* turns;
  bool log_w_is_known;
};

struct Tile {
  std::int64_t first_row;
  int rows;
  std::int32_t label[lanes];  // -1: none
  double weight[lanes];       // of the label, 0: nothing to learn from this row
  double row_task_scale[lanes], row_supervision_scale[lanes];
  double task[lanes], supervision[lanes];
  bool learns[lanes];  // some target is not 0
  bool exact[lanes];   // to be done in log space
  const Row* w;
};

PTRAIN_INLINE std::int64_t padded(std::int64_t classes) {
  return (classes + float_lanes - 1) / float_lanes * float_lanes;
}

PTRAIN_INLINE bool is_narrow(const HaltingTask& task) { return task.classes < narrow_classes; }

template <typename Value>
Value* take(char* memory, std::int64_t& used, std::int64_t count) {
  Value* taken = memory == nullptr ? nullptr : reinterpret_cast<Value*>(memory + used);
  used += (count * static_cast<std::int64_t>(sizeof(Value)) + 63) / 64 * 64;
  return taken;
}

// Called first with null, to measure; returns how many bytes are used.
std::int64_t lay_out(const HaltingTask& task, const HaltingCut& cut, char* memory, Room& room) {
  std::int64_t used = 0;
  const std::int64_t blocks = task.blocks;
  for (Row** rows : {&room.h, &room.stop, &room.p, &room.q, &room.w, &room.log_w, &room.pulled,
                     &room.row_w, &room.r, &room.inverse}) {
    *rows = take<Row>(memory, used, blocks + 1);
  }
  for (FloatRow** rows : {&room.label_z, &room.most, &room.others, &room.factor, &room.label_grad,
                          &room.answer_weight}) {
    *rows = take<FloatRow>(memory, used, blocks);
  }
  if (task.in_double) return used;
  const std::int64_t rows = is_narrow(task) ? lanes : cut.tile_rows;
  const std::int64_t size = is_narrow(task) ? task.classes : padded(task.classes);
  room.exps = take<float>(memory, used, blocks * rows * size);
  room.staging = take<float>(memory, used, rows * size);
  room.columns = take<float>(memory, used, rows * size);
  room.targets = take<float>(memory, used, rows * size);
  room.answer = take<float>(memory, used, rows * size);
  return used;
}

// ----------------------------------------------------------------------------------- units

PTRAIN_OUTLINE bool has_label(const HaltingTask& task, std::int64_t row) {
  if (task.labels == nullptr) {
    for (std::int64_t c = 0; c < task.classes; ++c) {
      if (halting_number(task.soft_type, task.soft_labels, row * task.classes + c) != 0.0) return true;
    }
    return false;
  }
  return halting_label(task, row) != task.ignore_index;
}

PTRAIN_OUTLINE bool is_regularised(const HaltingTask& task, std::int64_t unit) {
  if (task.mask != nullptr && !task.mask_is_per_row) return task.mask[unit] != 0;
  for (std::int64_t t = 0; t < task.tokens; ++t) {
    const std::int64_t row = unit * task.tokens + t;
    if (task.mask != nullptr ? task.mask[row] != 0 : has_label(task, row)) return true;
  }
  return false;
}

PTRAIN_OUTLINE void read_halting(const HaltingTask& task, std::int64_t block, std::int64_t first, int count,
                  double* to) {
  const std::int64_t start = block * task.halting_stride + first;
  if (task.halting_type == HaltingType::float32) {
    const float* from = static_cast<const float*>(task.halting) + start;
    for (int i = 0; i < count; ++i) to[i] = from[i];
  } else {
    for (int i = 0; i < count; ++i) to[i] = halting_number(task.halting_type, task.halting, start + i);
  }
  for (int i = count; i < lanes; ++i) to[i] = 0.0;
}

// h, p and w of the units, and their regulariser. 1 - p is summed up from positive terms, p_{n-1} (1 - h_n):
// no cancellation.
PTRAIN_OUTLINE void units_forward(const HaltingTask& task, const Room& room, std::int64_t first, int count,
                   const bool* counted, HaltingSums& sums) {
  const std::int64_t blocks = task.blocks;
  Row regulariser = {};
  for (std::int64_t n = 0; n < blocks; ++n) read_halting(task, n, first, count, room.h[n]);
  for (int v = 0; v < lanes; v += double_lanes) {
    Doubles p = all(1.0), q = all(0.0), sum = all(0.0);
    for (std::int64_t n = 0; n < blocks; ++n) {
      const Doubles u = load<Doubles>(room.h[n] + v);
      const Doubles t = exp_of(u < 0.0 ? u : -u);
      const Doubles big = 1.0 / (1.0 + t);
      const Doubles small = t * big;
      const Doubles h = u >= 0.0 ? big : small;
      const Doubles stop = u >= 0.0 ? small : big;
      store(room.h[n] + v, h);
      store(room.stop[n] + v, stop);
      q += p * stop;
      p *= h;
      store(room.p[n] + v, p);
      store(room.q[n] + v, q);
      sum += task.alpha[n] * h + task.beta[n] * p;
    }
    store(regulariser + v, sum);
    Doubles after = all(1.0);
    for (std::int64_t n = blocks - 1; n > 0; --n) {
      store(room.w[n] + v, load<Doubles>(room.p[n - 1] + v) * after);
      after *= load<Doubles>(room.q[n - 1] + v);
    }
    store(room.w[0] + v, after);
  }
  for (int i = 0; i < count; ++i) {
    const double value = counted[i] ? regulariser[i] : 0.0;
    sums.regulariser += value;
    write_result(task, task.regulariser, first + i, value);
  }
  for (std::int64_t n = 0; n < blocks && task.halting_p != nullptr; ++n) {
    for (int i = 0; i < count; ++i) {
      write_result(task, task.halting_p, n * task.units + first + i, room.p[n][i]);
    }
  }
  for (std::int64_t n = 0; n < blocks && task.exit_weights != nullptr; ++n) {
    for (int i = 0; i < count; ++i) {
      write_result(task, task.exit_weights, n * task.units + first + i, room.w[n][i]);
    }
  }
}

// The gradient by the halting logits, from pulled[n] = sum over the unit's rows of scale * R_n.
PTRAIN_OUTLINE void units_backward(const HaltingTask& task, const Room& room, std::int64_t first, int count,
                    const bool* counted, const bool* learns) {
  const std::int64_t blocks = task.blocks;
  Row scale = {};
  bool moves[lanes] = {};
  for (int i = 0; i < count; ++i) {
    scale[i] = counted[i] ? task.grad_regulariser.values[task.grad_regulariser.step * (first + i)] : 0.0;
    moves[i] = learns[i] || scale[i] != 0.0;
  }
  for (int v = 0; v < lanes; v += double_lanes) {
    // F_n = R_1 + ... + R_n: only positive terms.
    Doubles sum = all(0.0);
    for (std::int64_t n = 0; n < blocks; ++n) {
      sum += load<Doubles>(room.pulled[n] + v);
      store(room.inverse[n] + v, sum);
    }
    const Doubles grad = load<Doubles>(scale + v);
    Doubles pull = all(0.0), beta_p = all(0.0);
    for (std::int64_t n = blocks - 1; n >= 0; --n) {
      const Doubles p = load<Doubles>(room.p[n] + v);
      if (n + 1 < blocks) {
        const Doubles q = load<Doubles>(room.q[n] + v);
        // Multiplied by 1 - h <= 1 - p below, so below this it would come to nothing.
        const Doubles odds = q < 1e-290 ? all(0.0) : p / q;
        pull += odds * load<Doubles>(room.inverse[n] + v) - load<Doubles>(room.pulled[n + 1] + v);
      }
      beta_p += task.beta[n] * p;
      const Doubles h = load<Doubles>(room.h[n] + v);
      const Doubles stop = load<Doubles>(room.stop[n] + v);
      store(room.row_w[n] + v, stop * (pull + grad * (task.alpha[n] * h + beta_p)));
    }
  }
  for (std::int64_t n = 0; n < blocks; ++n) {
    const std::int64_t start = n * task.units + first;
    for (int i = 0; i < lanes; ++i) room.row_w[n][i] = moves[i] ? room.row_w[n][i] : 0.0;
    if (task.halting_type == HaltingType::float32) {
      float* to = static_cast<float*>(task.grad_halting) + start;
      for (int i = 0; i < count; ++i) to[i] = static_cast<float>(room.row_w[n][i]);
      continue;
    }
    for (int i = 0; i < count; ++i) {
      write_number(task.halting_type, task.grad_halting, start + i, room.row_w[n][i]);
    }
  }
}

// ----------------------------------------------------------------------------------- rows

double class_weight(const HaltingTask& task, std::int64_t c) {
  return task.class_weight == nullptr ? 1.0 : task.class_weight[c];
}

bool is_dense(const HaltingTask& task) { return task.labels == nullptr || task.label_smoothing != 0.0; }

// What class c of the row weighs, where that is not only the label's.
PTRAIN_OUTLINE double target_of(const HaltingTask& task, std::int64_t row, std::int32_t label, std::int64_t c) {
  double target;
  if (task.labels == nullptr) {
    target = halting_number(task.soft_type, task.soft_labels, row * task.classes + c);
  } else {
    target = c == label ? 1.0 : 0.0;
  }
  if (task.label_smoothing != 0.0) {
    target = target * (1.0 - task.label_smoothing) +
             task.label_smoothing / static_cast<double>(task.classes);
  }
  return target * class_weight(task, c);
}

PTRAIN_OUTLINE void read_labels(const HaltingTask& task, Tile& tile) {
  for (int i = 0; i < lanes; ++i) {
    const std::int64_t row = tile.first_row + i;
    tile.label[i] = -1;
    tile.weight[i] = tile.task[i] = tile.supervision[i] = 0.0;
    tile.row_task_scale[i] = tile.row_supervision_scale[i] = 0.0;
    tile.learns[i] = tile.exact[i] = false;
    if (i >= tile.rows) continue;
    if (task.grad_task.values != nullptr) {
      tile.row_task_scale[i] = task.grad_task.values[task.grad_task.step * row];
      tile.row_supervision_scale[i] = task.grad_supervision.values[task.grad_supervision.step * row];
    }
    if (task.labels == nullptr) {
      tile.learns[i] = has_label(task, row);
    } else {
      const std::int64_t label = halting_label(task, row);
      if (label == task.ignore_index) continue;
      tile.label[i] = static_cast<std::int32_t>(label);
      tile.weight[i] = class_weight(task, label);
      tile.learns[i] = is_dense(task) || tile.weight[i] != 0.0;
    }
  }
}

PTRAIN_INLINE FloatBits label_lanes(const Tile& tile, int v) { return load<FloatBits>(tile.label + v); }

// How sixteen rows of C classes are turned into C columns, and back: with registers of sixteen floats, each
// column is picked from C registers by permutations, of which this holds the indices.
struct Turns {
  FloatBits to[narrow_classes][narrow_classes], from[narrow_classes][narrow_classes];
};

// Lane i of the result takes flat element source[i]: of the first register alone, then, register by
// register, what lies in that one; the other lanes keep what they have.
PTRAIN_INLINE void plan_turn(FloatBits* turn, const int* source, int registers) {
  for (int i = 0; i < float_lanes; ++i) {
    for (int k = 0; k < registers; ++k) {
      const int within = source[i] - k * float_lanes;
      const bool here = within >= 0 && within < float_lanes;
      turn[k][i] = here ? within + (k > 0 ? float_lanes : 0) : i;
    }
  }
}

PTRAIN_OUTLINE void plan_turns(int classes, Turns& turns) {
  int source[float_lanes];
  for (int c = 0; c < classes; ++c) {
    for (int i = 0; i < float_lanes; ++i) source[i] = i * classes + c;
    plan_turn(turns.to[c], source, classes);
    for (int i = 0; i < float_lanes; ++i) {
      const int flat = c * float_lanes + i;
      source[i] = flat % classes * float_lanes + flat / classes;
    }
    plan_turn(turns.from[c], source, classes);
  }
}

PTRAIN_INLINE void turn_rows(const FloatBits (*turns)[narrow_classes], const float* from, int classes,
                             float* to) {
  for (int c = 0; c < classes; ++c) {
    Floats turned = __builtin_shuffle(load<Floats>(from), turns[c][0]);
    for (int k = 1; k < classes; ++k) {
      turned = __builtin_shuffle(turned, load<Floats>(from + k * float_lanes), turns[c][k]);
    }
    store(to + c * lanes, turned);
  }
}

constexpr bool turns_registers = float_lanes == lanes;

// [rows][C] to [C][lanes]; lanes without a row become 0.
PTRAIN_OUTLINE void to_columns(const Turns* turns, const float* from, std::int64_t classes, int rows,
                               float* to) {
  if constexpr (turns_registers) {
    if (rows == lanes) return turn_rows(turns->to, from, static_cast<int>(classes), to);
  }
  if (rows < lanes) __builtin_memset(to, 0, sizeof(float) * lanes * static_cast<std::size_t>(classes));
  for (int i = 0; i < rows; ++i) {
    for (std::int64_t c = 0; c < classes; ++c) to[c * lanes + i] = from[i * classes + c];
  }
}

PTRAIN_OUTLINE void from_columns(const Turns* turns, const float* from, std::int64_t classes, int rows,
                                 float* to) {
  if constexpr (turns_registers) {
    if (rows == lanes) return turn_rows(turns->from, from, static_cast<int>(classes), to);
  }
  for (int i = 0; i < rows; ++i) {
    for (std::int64_t c = 0; c < classes; ++c) to[i * classes + c] = from[c * lanes + i];
  }
}

const char* address_of(const HaltingTask& task, std::int64_t element) {
  return static_cast<const char*>(task.logits) + element * bytes_of(task.logits_type);
}

// max, e^(z - max) and their sum for the tile, block by block; the label's class is left out of the sum
// and its exponential is 0, so that 1 - y_label is known without cancellation. With dense targets
// no class is left out, and label_z is sum_c t_c (z_c - max) for the supervision.
PTRAIN_OUTLINE void narrow_softmax(const HaltingTask& task, const Room& room, const Tile& tile, bool dense) {
  const std::int64_t classes = task.classes;
  for (std::int64_t n = 0; n < task.blocks; ++n) {
    float* exps = room.exps + n * classes * lanes;
    const std::int64_t start = n * task.logits_stride + tile.first_row * classes;
    const std::int64_t count = tile.rows * classes;
    fetch_soon(address_of(task, start + count), count * bytes_of(task.logits_type));
    to_columns(room.turns, as_floats(task.logits_type, task.logits, start, tile.rows * classes, room.staging),
               classes, tile.rows, exps);
    for (int v = 0; v < lanes; v += float_lanes) {
      Floats most = load<Floats>(exps + v);
      for (std::int64_t c = 1; c < classes; ++c) most = larger(load<Floats>(exps + c * lanes + v), most);
      const FloatBits label = label_lanes(tile, v);
      Floats sum{}, label_z = dense ? Floats{} : all(-__builtin_inff());
      for (std::int64_t c = 0; c < classes; ++c) {
        const Floats z = load<Floats>(exps + c * lanes + v);
        const Floats gap = z - most;
        Floats e = exp_of(gap);
        if (dense) {
          // What the subtraction lost: far below the maximum that is many units in the last place of e.
          const Floats back = gap + most;
          const Floats lost = (z - back) + (most - (back - gap));
          e = lost == lost ? e + e * lost : e;
          if (task.eta != nullptr) {
            const Floats target = load<Floats>(room.targets + c * lanes + v);
            label_z += target != 0.0f ? target * gap : Floats{};
          }
        } else {
          const FloatBits here = label == static_cast<std::int32_t>(c);
          label_z = here ? z : label_z;
          e = here ? Floats{} : e;
        }
        sum += e;
        store(exps + c * lanes + v, e);
      }
      store(room.most[n] + v, most);
      store(room.label_z[n] + v, label_z);
      store(room.others[n] + v, sum);
    }
  }
}

PTRAIN_OUTLINE void wide_softmax(const HaltingTask& task, const Room& room, const Tile& tile, bool dense) {
  const std::int64_t classes = task.classes, size = padded(task.classes);
  const bool answers = task.log_answer != nullptr;
  for (std::int64_t n = 0; n < task.blocks; ++n) {
    for (int i = 0; i < tile.rows; ++i) {
      room.most[n][i] = room.others[n][i] = room.label_z[n][i] = 0.0f;
      if (!tile.learns[i] && !answers) continue;
      float* exps = room.exps + (n * tile.rows + i) * size;
      const std::int64_t start = n * task.logits_stride + (tile.first_row + i) * classes;
      fetch_soon(address_of(task, start + tile.rows * classes), classes * bytes_of(task.logits_type));
      const float* z = as_floats(task.logits_type, task.logits, start, classes, room.staging);
      Floats most = all(-__builtin_inff());
      std::int64_t c = 0;
      for (; c + float_lanes <= classes; c += float_lanes) {
        const Floats these = load<Floats>(z + c);
        most = larger(these, most);
        store(exps + c, these);
      }
      if (c < classes) {
        store(exps + c, all(-__builtin_inff()));
        __builtin_memcpy(exps + c, z + c, sizeof(float) * static_cast<std::size_t>(classes - c));
        most = larger(load<Floats>(exps + c), most);
      }
      const float top = largest_of(most);
      float label_z = dense ? 0.0f : -__builtin_inff();
      if (!dense && tile.label[i] >= 0) {
        label_z = exps[tile.label[i]];
        exps[tile.label[i]] = -__builtin_inff();
      }
      double total = 0.0, total_gap = 0.0;
      for (c = 0; c < size;) {
        const std::int64_t end = size - c < run_of_floats ? size : c + run_of_floats;
        Floats sum{}, gaps{};
        for (; c < end; c += float_lanes) {
          const Floats these = load<Floats>(exps + c);
          const Floats gap = these - top;
          Floats e = exp_of(gap);
          if (dense) {
            const Floats back = gap + top;
            const Floats lost = (these - back) + (top - (back - gap));
            e = lost == lost ? e + e * lost : e;
            if (task.eta != nullptr) {
              const Floats target = load<Floats>(room.targets + i * size + c);
              gaps += target != 0.0f ? target * gap : Floats{};
            }
          }
          sum += e;
          store(exps + c, e);
        }
        total += sum_of(sum);
        if (dense && task.eta != nullptr) total_gap += sum_of(gaps);
      }
      room.most[n][i] = top;
      room.label_z[n][i] = dense ? static_cast<float>(total_gap) : label_z;
      room.others[n][i] = static_cast<float>(total);
    }
    for (int i = tile.rows; i < lanes; ++i) {
      room.most[n][i] = room.others[n][i] = room.label_z[n][i] = 0.0f;
    }
  }
}

// With one class that counts: a_N of the label, R_n, and by what the exponentials are multiplied.
PTRAIN_OUTLINE void weigh_labels(const HaltingTask& task, const Room& room, Tile& tile, bool gradients) {
  const std::int64_t blocks = task.blocks;
  for (int v = 0; v < lanes; v += double_lanes) {
    const Doubles weight = load<Doubles>(tile.weight + v);
    const DoubleBits learns = weight != 0.0;
    Doubles answer = all(0.0), supervision = all(0.0);
    for (std::int64_t n = 0; n < blocks; ++n) {
      const Doubles gap =
          widen(load<HalfFloats>(room.label_z[n] + v)) - widen(load<HalfFloats>(room.most[n] + v));
      const Doubles e = exp_of(gap);
      const Doubles sum = widen(load<HalfFloats>(room.others[n] + v)) + e;
      const Doubles inverse = 1.0 / sum;
      const Doubles part = load<Doubles>(tile.w[n] + v) * e * inverse;
      answer += part;
      store(room.r[n] + v, part);
      store(room.inverse[n] + v, inverse);
      if (task.eta != nullptr && task.eta[n] != 0.0) {
        supervision += task.eta[n] * (log_of(sum) - gap);
      }
    }
    const Doubles task_loss = -(weight * log_of(answer));
    store(tile.task + v, learns ? task_loss : all(0.0));
    store(tile.supervision + v, learns ? weight * supervision : all(0.0));
    for (int i = v; i < v + double_lanes; ++i) {
      tile.exact[i] = learns[i - v] && !(answer[i - v] >= least_double_answer);
    }
    if (!gradients) continue;
    const Doubles rate = learns ? weight / answer : all(0.0);
    const Doubles task_scale = load<Doubles>(tile.row_task_scale + v);
    const Doubles supervision_scale = load<Doubles>(tile.row_supervision_scale + v) * weight;
    for (std::int64_t n = 0; n < blocks; ++n) {
      const Doubles inverse = load<Doubles>(room.inverse[n] + v);
      Doubles r = load<Doubles>(room.r[n] + v) * rate;
      r = learns ? task_scale * r : all(0.0);
      store(room.r[n] + v, r);
      Doubles factor = r;
      if (task.eta != nullptr) factor += supervision_scale * task.eta[n];
      factor = learns ? factor * inverse : all(0.0);
      const Doubles others = widen(load<HalfFloats>(room.others[n] + v));
      store(room.factor[n] + v, narrow(factor));
      store(room.label_grad[n] + v, narrow(learns ? -(factor * others) : all(0.0)));
    }
  }
}

// The answer of every class, and its logarithm, where it is wanted, of a tile with hard labels.
PTRAIN_OUTLINE void narrow_answers(const HaltingTask& task, const Room& room, Tile& tile) {
  const std::int64_t classes = task.classes;
  for (std::int64_t n = 0; n < task.blocks; ++n) {
    for (int v = 0; v < lanes; v += double_lanes) {
      store(room.answer_weight[n] + v,
            narrow(load<Doubles>(tile.w[n] + v) * load<Doubles>(room.inverse[n] + v)));
    }
  }
  for (std::int64_t c = 0; c < classes; ++c) {
    for (int v = 0; v < lanes; v += float_lanes) {
      Floats sum{};
      for (std::int64_t n = 0; n < task.blocks; ++n) {
        sum += load<Floats>(room.answer_weight[n] + v) * load<Floats>(room.exps + (n * classes + c) * lanes + v);
      }
      store(room.answer + c * lanes + v, sum);
    }
  }
}

PTRAIN_OUTLINE void wide_answers(const HaltingTask& task, const Room& room, Tile& tile) {
  const std::int64_t size = padded(task.classes);
  for (std::int64_t n = 0; n < task.blocks; ++n) {
    for (int v = 0; v < lanes; v += double_lanes) {
      store(room.answer_weight[n] + v,
            narrow(load<Doubles>(tile.w[n] + v) * load<Doubles>(room.inverse[n] + v)));
    }
  }
  for (int i = 0; i < tile.rows; ++i) {
    for (std::int64_t c = 0; c < size; c += float_lanes) {
      Floats sum{};
      for (std::int64_t n = 0; n < task.blocks; ++n) {
        sum += room.answer_weight[n][i] * load<Floats>(room.exps + (n * tile.rows + i) * size + c);
      }
      store(room.answer + i * size + c, sum);
    }
  }
}

// The place of class c of row i in `answer`, `targets` and one block of `exps`.
PTRAIN_INLINE std::int64_t place(bool narrow, std::int64_t size, int i, std::int64_t c) {
  return narrow ? c * lanes + i : i * size + c;
}

// log a_N. `own` is a_N of the labels, which their column lacks; null with dense targets.
PTRAIN_OUTLINE void write_answers(const HaltingTask& task, const Room& room, Tile& tile, const double* own) {
  const bool narrow_rows = is_narrow(task);
  const std::int64_t classes = task.classes, size = padded(classes);
  float* to = static_cast<float*>(task.log_answer) + tile.first_row * classes;
  for (int i = 0; i < tile.rows; ++i) {
    if (own != nullptr && tile.label[i] >= 0) {
      room.answer[place(narrow_rows, size, i, tile.label[i])] = static_cast<float>(own[i]);
    }
  }
  const std::int64_t count = narrow_rows ? classes * lanes : tile.rows * size;
  float* logs = room.columns;
  for (std::int64_t k = 0; k < count; k += double_lanes) {
    store(logs + k, narrow(log_of(widen(load<HalfFloats>(room.answer + k)))));
  }
  for (int i = 0; i < tile.rows; ++i) {
    for (std::int64_t c = 0; c < classes; ++c) {
      const std::int64_t k = place(narrow_rows, size, i, c);
      tile.exact[i] |= !(room.answer[k] >= least_float_answer);
      to[i * classes + c] = logs[k];
    }
  }
}

// ----------------------------------------------------------------------------------- dense targets

PTRAIN_OUTLINE void read_targets(const HaltingTask& task, const Room& room, Tile& tile) {
  const bool narrow_rows = is_narrow(task);
  const std::int64_t size = padded(task.classes);
  for (int i = 0; i < (narrow_rows ? lanes : tile.rows); ++i) {
    double sum = 0.0;
    bool any = false;
    for (std::int64_t c = 0; c < (narrow_rows ? task.classes : size); ++c) {
      double target = 0.0;
      if (i < tile.rows && tile.learns[i] && c < task.classes) {
        target = target_of(task, tile.first_row + i, tile.label[i], c);
      }
      room.targets[place(narrow_rows, size, i, c)] = static_cast<float>(target);
      sum += target;
      any |= target != 0.0;
    }
    tile.weight[i] = sum;
    tile.learns[i] = any;
  }
}

// With targets for all classes: a_N, R_n and the gradient by the logits, which replaces the exponentials.
PTRAIN_OUTLINE void weigh_targets(const HaltingTask& task, const Room& room, Tile& tile, bool gradients) {
  const bool narrow_rows = is_narrow(task);
  const std::int64_t blocks = task.blocks, classes = task.classes;
  const std::int64_t size = narrow_rows ? classes : padded(classes);
  for (std::int64_t n = 0; n < blocks; ++n) {
    for (int v = 0; v < lanes; v += double_lanes) {
      store(room.inverse[n] + v, 1.0 / widen(load<HalfFloats>(room.others[n] + v)));
    }
  }
  if (task.eta != nullptr) {
    for (int i = 0; i < tile.rows; ++i) {
      double sum = 0.0;
      for (std::int64_t n = 0; n < blocks; ++n) {
        if (task.eta[n] == 0.0) continue;
        sum += task.eta[n] * (-tile.weight[i] * halting_log(room.inverse[n][i]) - room.label_z[n][i]);
      }
      tile.supervision[i] = tile.learns[i] ? sum : 0.0;
    }
  }
  if (narrow_rows) {
    narrow_answers(task, room, tile);
  } else {
    wide_answers(task, room, tile);
  }
  if (task.log_answer != nullptr) write_answers(task, room, tile, nullptr);
  // The loss, and g_c = t_c / a_c in place of a_c.
  for (int i = 0; i < (narrow_rows ? lanes : tile.rows); ++i) {
    bool fits = true;
    double loss = 0.0;
    for (std::int64_t c = 0; c < size; ++c) {
      const std::int64_t k = place(narrow_rows, size, i, c);
      const float target = room.targets[k];
      if (target == 0.0f) {
        room.answer[k] = 0.0f;
        continue;
      }
      const float answer = room.answer[k];
      fits &= answer >= least_float_answer;
      room.answer[k] = target / answer;
    }
    if (fits && tile.learns[i]) {
      for (std::int64_t c = 0; c < classes; ++c) {
        const std::int64_t k = place(narrow_rows, size, i, c);
        const float target = room.targets[k];
        if (target != 0.0f) loss += target * halting_log(static_cast<double>(room.answer[k]) / target);
      }
    }
    tile.task[i] = loss;
    tile.exact[i] |= !fits;
  }
  if (!gradients) return;
  if (narrow_rows) {
    for (int v = 0; v < lanes; v += float_lanes) {
      float task_scale[float_lanes], supervision_scale[float_lanes], weight[float_lanes];
      FloatBits learns;
      for (int i = 0; i < float_lanes; ++i) {
        task_scale[i] = static_cast<float>(tile.row_task_scale[v + i]);
        supervision_scale[i] = static_cast<float>(tile.row_supervision_scale[v + i]);
        weight[i] = static_cast<float>(tile.weight[v + i]);
        learns[i] = tile.learns[v + i] ? -1 : 0;
      }
      for (std::int64_t n = 0; n < blocks; ++n) {
        float* exps = room.exps + n * classes * lanes + v;
        Floats dot{};
        for (std::int64_t c = 0; c < classes; ++c) {
          dot += load<Floats>(room.answer + c * lanes + v) * load<Floats>(exps + c * lanes);
        }
        const Floats share = load<Floats>(room.answer_weight[n] + v);
        const Floats r = share * dot;
        store(room.factor[n] + v, r);
        float inverse[float_lanes];
        for (int i = 0; i < float_lanes; ++i) inverse[i] = static_cast<float>(room.inverse[n][v + i]);
        const float eta = task.eta == nullptr ? 0.0f : static_cast<float>(task.eta[n]);
        const Floats deep = load<Floats>(supervision_scale) * eta;
        const Floats push = load<Floats>(inverse) * (load<Floats>(task_scale) * r + deep * load<Floats>(weight));
        const Floats hold = load<Floats>(task_scale) * share;
        for (std::int64_t c = 0; c < classes; ++c) {
          const Floats e = load<Floats>(exps + c * lanes);
          const Floats target = load<Floats>(room.targets + c * lanes + v);
          const Floats grad = e * (push - hold * load<Floats>(room.answer + c * lanes + v)) - deep * target;
          store(exps + c * lanes, learns ? grad : Floats{});
        }
      }
    }
  } else {
    for (std::int64_t n = 0; n < blocks; ++n) {
      const float eta = task.eta == nullptr ? 0.0f : static_cast<float>(task.eta[n]);
      for (int i = 0; i < tile.rows; ++i) {
        if (!tile.learns[i]) continue;
        float* exps = room.exps + (n * tile.rows + i) * size;
        const float* rates = room.answer + i * size;
        const float* targets = room.targets + i * size;
        double dot = 0.0;
        for (std::int64_t c = 0; c < size;) {
          const std::int64_t end = size - c < run_of_floats ? size : c + run_of_floats;
          Floats dots{};
          for (; c < end; c += float_lanes) dots += load<Floats>(rates + c) * load<Floats>(exps + c);
          dot += sum_of(dots);
        }
        const float share = room.answer_weight[n][i];
        const float r = static_cast<float>(share * dot);
        room.factor[n][i] = r;
        const float task_scale = static_cast<float>(tile.row_task_scale[i]);
        const float deep = static_cast<float>(tile.row_supervision_scale[i]) * eta;
        const float push = static_cast<float>(room.inverse[n][i]) *
                           (task_scale * r + deep * static_cast<float>(tile.weight[i]));
        const float hold = task_scale * share;
        for (std::int64_t c = 0; c < size; c += float_lanes) {
          const Floats e = load<Floats>(exps + c);
          store(exps + c, e * (push - hold * load<Floats>(rates + c)) - deep * load<Floats>(targets + c));
        }
      }
    }
  }
  for (std::int64_t n = 0; n < blocks; ++n) {
    for (int i = 0; i < lanes; ++i) {
      const bool learns = i < tile.rows && tile.learns[i];
      room.r[n][i] = learns ? tile.row_task_scale[i] * static_cast<double>(room.factor[n][i]) : 0.0;
    }
  }
}

// ----------------------------------------------------------------------------------- log space, double

// As many rows as a register has doubles, [N][C] of each.
struct Exact {
  Doubles *y, *x, *target;  // y_n,c; then log(w y), then w y / a, then the gradient; t_c
  int row[double_lanes];    // in the tile
  int count;
};

std::int64_t exact_size(const HaltingTask& task) {
  return static_cast<std::int64_t>(sizeof(Doubles)) * (2 * task.blocks + 1) * task.classes;
}

void exact_log_weights(const HaltingTask& task, Room& room, std::int64_t first, int count) {
  if (room.log_w_is_known) return;
  for (std::int64_t n = 0; n < task.blocks; ++n) read_halting(task, n, first, count, room.log_w[n]);
  halting_log_weights(room.log_w[0], task.blocks, lanes);
  room.log_w_is_known = true;
}

// Everything for these rows. The gradient by the logits stays in `x`: see write_exact.
PTRAIN_OUTLINE void exact_rows(const HaltingTask& task, const Room& room, Tile& tile, Exact& exact,
                std::int64_t first_unit, bool gradients) {
  const std::int64_t blocks = task.blocks, classes = task.classes;
  double lane[double_lanes];
  Doubles weight{}, task_scale{}, supervision_scale{};
  std::int64_t row[double_lanes];
  for (int k = 0; k < double_lanes; ++k) {
    const int i = exact.row[k < exact.count ? k : 0];
    row[k] = tile.first_row + i;
    task_scale[k] = tile.row_task_scale[i];
    supervision_scale[k] = tile.row_supervision_scale[i];
  }
  DoubleBits learns{};
  const bool dense = is_dense(task);
  for (std::int64_t c = 0; c < classes; ++c) {
    for (int k = 0; k < double_lanes; ++k) {
      const int i = exact.row[k < exact.count ? k : 0];
      const bool counts = tile.learns[i] && (dense || c == tile.label[i]);
      lane[k] = counts ? target_of(task, row[k], tile.label[i], c) : 0.0;
    }
    exact.target[c] = load<Doubles>(lane);
    weight += exact.target[c];
    learns |= exact.target[c] != 0.0;
  }
  Doubles supervision{};
  for (std::int64_t n = 0; n < blocks; ++n) {
    Doubles* y = exact.y + n * classes;
    Doubles* x = exact.x + n * classes;
    Doubles most = all(-__builtin_inf());
    for (std::int64_t c = 0; c < classes; ++c) {
      for (int k = 0; k < double_lanes; ++k) {
        lane[k] = halting_number(task.logits_type, task.logits, n * task.logits_stride + row[k] * classes + c);
      }
      x[c] = load<Doubles>(lane);
      most = larger(x[c], most);
    }
    Doubles sum{};
    for (std::int64_t c = 0; c < classes; ++c) {
      x[c] -= most;
      y[c] = exp_of(x[c]);
      sum += y[c];
    }
    const Doubles log_sum = log_of(sum), inverse = 1.0 / sum;
    Doubles cost{};
    for (int k = 0; k < double_lanes; ++k) lane[k] = room.log_w[n][(row[k] / task.tokens) - first_unit];
    const Doubles log_w = load<Doubles>(lane);
    for (std::int64_t c = 0; c < classes; ++c) {
      const Doubles log_y = x[c] - log_sum;
      cost -= exact.target[c] != 0.0 ? exact.target[c] * log_y : all(0.0);
      y[c] *= inverse;
      x[c] = log_w + log_y;
    }
    if (task.eta != nullptr && task.eta[n] != 0.0) supervision += task.eta[n] * cost;
  }
  Doubles loss{};
  for (std::int64_t c = 0; c < classes; ++c) {
    Doubles most = all(-__builtin_inf());
    for (std::int64_t n = 0; n < blocks; ++n) most = larger(exact.x[n * classes + c], most);
    const Doubles base = most == -__builtin_inf() ? all(0.0) : most;
    Doubles sum{};
    for (std::int64_t n = 0; n < blocks; ++n) {
      Doubles& x = exact.x[n * classes + c];
      x = exp_of(x - base);
      sum += x;
    }
    const Doubles log_answer = base + log_of(sum);
    for (std::int64_t n = 0; n < blocks; ++n) exact.x[n * classes + c] /= sum;
    loss -= exact.target[c] != 0.0 ? exact.target[c] * log_answer : all(0.0);
    if (task.log_answer == nullptr) continue;
    for (int k = 0; k < exact.count; ++k) {
      write_result(task, task.log_answer, row[k] * classes + c, log_answer[k]);
    }
  }
  for (int k = 0; k < exact.count; ++k) {
    tile.task[exact.row[k]] = learns[k] ? loss[k] : 0.0;
    tile.supervision[exact.row[k]] = learns[k] ? supervision[k] : 0.0;
  }
  if (!gradients) return;
  for (std::int64_t n = 0; n < blocks; ++n) {
    const Doubles* y = exact.y + n * classes;
    Doubles* x = exact.x + n * classes;
    Doubles r{};
    for (std::int64_t c = 0; c < classes; ++c) {
      x[c] = exact.target[c] != 0.0 ? exact.target[c] * x[c] : all(0.0);
      r += x[c];
    }
    const Doubles deep = supervision_scale * (task.eta == nullptr ? 0.0 : task.eta[n]);
    for (std::int64_t c = 0; c < classes; ++c) {
      const Doubles grad = task_scale * (y[c] * r - x[c]) + deep * (y[c] * weight - exact.target[c]);
      x[c] = learns ? grad : all(0.0);
    }
    for (int k = 0; k < exact.count; ++k) {
      room.r[n][exact.row[k]] = learns[k] ? task_scale[k] * r[k] : 0.0;
    }
  }
}

PTRAIN_OUTLINE void write_exact(const HaltingTask& task, const Tile& tile, const Exact& exact) {
  const std::int64_t blocks = task.blocks, classes = task.classes;
  for (std::int64_t n = 0; n < blocks; ++n) {
    for (int k = 0; k < exact.count; ++k) {
      const std::int64_t row = tile.first_row + exact.row[k];
      for (std::int64_t c = 0; c < classes; ++c) {
        write_number(task.logits_type, task.grad_logits, n * task.grad_logits_stride + row * classes + c,
                     exact.x[n * classes + c][k]);
      }
    }
  }
}

// ----------------------------------------------------------------------------------- gradient

PTRAIN_OUTLINE void write_narrow(const HaltingTask& task, const Room& room, const Tile& tile, bool dense) {
  const std::int64_t classes = task.classes;
  const bool direct = task.logits_type == HaltingType::float32;
  for (std::int64_t n = 0; n < task.blocks; ++n) {
    float* exps = room.exps + n * classes * lanes;
    for (int v = 0; v < lanes && !dense; v += float_lanes) {
      const Floats factor = load<Floats>(room.factor[n] + v);
      const Floats own = load<Floats>(room.label_grad[n] + v);
      const FloatBits label = label_lanes(tile, v);
      for (std::int64_t c = 0; c < classes; ++c) {
        Floats grad = factor != 0.0f ? load<Floats>(exps + c * lanes + v) * factor : Floats{};
        grad = label == static_cast<std::int32_t>(c) ? own : grad;
        store(exps + c * lanes + v, grad);
      }
    }
    const std::int64_t start = n * task.grad_logits_stride + tile.first_row * classes;
    float* to = direct ? static_cast<float*>(task.grad_logits) + start : room.staging;
    from_columns(room.turns, exps, classes, tile.rows, to);
    if (!direct) write_floats(task.logits_type, to, task.grad_logits, start, tile.rows * classes);
  }
}

PTRAIN_OUTLINE void write_wide(const HaltingTask& task, const Room& room, const Tile& tile, bool dense) {
  const std::int64_t classes = task.classes, size = padded(classes);
  const bool direct = task.logits_type == HaltingType::float32;
  for (std::int64_t n = 0; n < task.blocks; ++n) {
    for (int i = 0; i < tile.rows; ++i) {
      const std::int64_t start = n * task.grad_logits_stride + (tile.first_row + i) * classes;
      const float* exps = room.exps + (n * tile.rows + i) * size;
      float* to = direct ? static_cast<float*>(task.grad_logits) + start : room.staging;
      if (!tile.learns[i]) {
        __builtin_memset(to, 0, sizeof(float) * static_cast<std::size_t>(classes));
      } else if (dense) {
        __builtin_memcpy(to, exps, sizeof(float) * static_cast<std::size_t>(classes));
      } else {
        const float factor = room.factor[n][i];
        std::int64_t c = 0;
        for (; c + float_lanes <= classes; c += float_lanes) store(to + c, load<Floats>(exps + c) * factor);
        for (; c < classes; ++c) to[c] = exps[c] * factor;
        to[tile.label[i]] = room.label_grad[n][i];
      }
      if (!direct) write_floats(task.logits_type, to, task.grad_logits, start, classes);
    }
  }
}

// ----------------------------------------------------------------------------------- tiles and chunks

PTRAIN_OUTLINE void run_tile(const HaltingTask& task, Room& room, HaltingMemory& memory, Tile& tile,
              std::int64_t first_unit, int units) {
  const bool gradients = task.grad_logits != nullptr || task.grad_halting != nullptr;
  const bool dense = is_dense(task);
  const bool narrow_rows = is_narrow(task);
  tile.w = room.w;
  if (task.tokens > 1 || tile.first_row != first_unit) {
    for (std::int64_t n = 0; n < task.blocks; ++n) {
      for (int i = 0; i < lanes; ++i) {
        const std::int64_t unit = (tile.first_row + i) / task.tokens - first_unit;
        room.row_w[n][i] = i < tile.rows ? room.w[n][unit] : 0.0;
      }
    }
    tile.w = room.row_w;
  }
  if (task.in_double) {
    for (int i = 0; i < tile.rows; ++i) tile.exact[i] = true;
  } else {
    if (dense) read_targets(task, room, tile);
    if (narrow_rows) {
      narrow_softmax(task, room, tile, dense);
    } else {
      wide_softmax(task, room, tile, dense);
    }
    if (dense) {
      weigh_targets(task, room, tile, gradients);
    } else {
      weigh_labels(task, room, tile, gradients);
      if (task.log_answer != nullptr) {
        Row own = {};
        for (int i = 0; i < tile.rows; ++i) {
          own[i] = tile.weight[i] != 0.0 ? halting_exp(-tile.task[i] / tile.weight[i]) : 0.0;
        }
        if (narrow_rows) {
          narrow_answers(task, room, tile);
        } else {
          wide_answers(task, room, tile);
        }
        write_answers(task, room, tile, own);
      }
    }
  }
  // The logits may lie where the gradient goes: the exact rows are read before any is written.
  Exact exact[double_steps];
  int groups = 0;
  for (int i = 0; i < tile.rows; ++i) {
    if (!tile.exact[i]) continue;
    if (groups == 0 || exact[groups - 1].count == double_lanes) {
      char* from = memory.exact(groups, exact_size(task));
      exact[groups].y = reinterpret_cast<Doubles*>(from);
      exact[groups].x = exact[groups].y + task.blocks * task.classes;
      exact[groups].target = exact[groups].x + task.blocks * task.classes;
      exact[groups++].count = 0;
    }
    Exact& group = exact[groups - 1];
    group.row[group.count++] = i;
  }
  if (groups > 0) exact_log_weights(task, room, first_unit, units);
  for (int k = 0; k < groups; ++k) exact_rows(task, room, tile, exact[k], first_unit, gradients);
  if (task.grad_logits == nullptr) return;
  if (!task.in_double) {
    if (narrow_rows) {
      write_narrow(task, room, tile, dense);
    } else {
      write_wide(task, room, tile, dense);
    }
  }
  for (int k = 0; k < groups; ++k) write_exact(task, tile, exact[k]);
}

HaltingSums run_chunk(const HaltingTask& task, const HaltingCut& cut, Room& room,
                      HaltingMemory& memory, std::int64_t first, int count) {
  HaltingSums sums;
  bool counted[lanes] = {}, learns[lanes] = {};
  for (int i = 0; i < count; ++i) counted[i] = is_regularised(task, first + i);
  units_forward(task, room, first, count, counted, sums);
  room.log_w_is_known = false;
  __builtin_memset(room.pulled[0], 0, sizeof(Row) * static_cast<std::size_t>(task.blocks));
  const bool gradients = task.grad_logits != nullptr || task.grad_halting != nullptr;
  const std::int64_t last_row = (first + count) * task.tokens;
  for (std::int64_t row = first * task.tokens; row < last_row; row += cut.tile_rows) {
    Tile tile;
    tile.first_row = row;
    tile.rows = static_cast<int>(last_row - row < cut.tile_rows ? last_row - row : cut.tile_rows);
    read_labels(task, tile);
    run_tile(task, room, memory, tile, first, count);
    for (int i = 0; i < tile.rows; ++i) {
      sums.task += tile.task[i];
      sums.supervision += tile.supervision[i];
      write_result(task, task.task, row + i, tile.task[i]);
      write_result(task, task.supervision, row + i, tile.supervision[i]);
      learns[(row + i) / task.tokens - first] |= tile.learns[i];
    }
    if (!gradients) continue;
    if (task.tokens == 1) {
      for (std::int64_t n = 0; n < task.blocks; ++n) {
        __builtin_memcpy(room.pulled[n] + (row - first), room.r[n], sizeof(double) * static_cast<std::size_t>(tile.rows));
      }
    } else {
      for (int i = 0; i < tile.rows; ++i) {
        const std::int64_t unit = (row + i) / task.tokens - first;
        for (std::int64_t n = 0; n < task.blocks; ++n) room.pulled[n][unit] += room.r[n][i];
      }
    }
  }
  if (task.grad_halting != nullptr) units_backward(task, room, first, count, counted, learns);
  return sums;
}

void run_parts(const HaltingTask& task, const HaltingCut& cut, std::int64_t begin, std::int64_t end,
               HaltingSums* sums_of) {
  Room room{};
  HaltingMemory memory(lay_out(task, cut, nullptr, room));
  lay_out(task, cut, memory.all(), room);
  Turns turns;
  room.turns = &turns;
  if (turns_registers && is_narrow(task)) plan_turns(static_cast<int>(task.classes), turns);
  for (std::int64_t part = begin; part < end; ++part) {
    HaltingSums& sums = sums_of[part];
    const std::int64_t last = (part + 1) * cut.part_units < task.units ? (part + 1) * cut.part_units : task.units;
    for (std::int64_t unit = part * cut.part_units; unit < last; unit += cut.chunk_units) {
      const std::int64_t count = last - unit < cut.chunk_units ? last - unit : cut.chunk_units;
      const HaltingSums chunk = run_chunk(task, cut, room, memory, unit, static_cast<int>(count));
      sums.task += chunk.task;
      sums.supervision += chunk.supervision;
      sums.regulariser += chunk.regulariser;
    }
  }
}

}  // namespace

constexpr HaltingSpans halting_spans = {run_parts};
