// The loops of the halting loss for one instruction set: a chunk of units after the other.
//
// A chunk's units lie in sixteen lanes, and so do the rows of a tile. All is in float, and nothing in it
// cancels. Rows for which a float's range is not enough, and float64 inputs, are computed in log space,
// in double, by exact_rows.
#include "simd.inl"

namespace {

constexpr int lanes = halting_lanes;
constexpr int double_steps = lanes / double_lanes;
// So many vectors are summed up before they join the others: the error hardly grows with the classes.
constexpr std::int64_t run_of_floats = 16 * float_lanes;

// Below this a sum of products that is a class's probability may have lost its small terms.
constexpr float least_answer = 1e-25f;
// Logits no larger than this need no maximum: e^32 is far from a float's bounds, both ways.
constexpr float most_plain_logit = 32.0f;

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
  if (type == HaltingType::float32) {
    __builtin_memcpy(static_cast<float*>(to) + start, from, sizeof(float) * static_cast<std::size_t>(count));
  } else if (type == HaltingType::bfloat16) {
    halves_from_floats<bfloat16_of>(from, static_cast<std::uint16_t*>(to) + start, count);
  } else {
    halves_from_floats<float16_of>(from, static_cast<std::uint16_t*>(to) + start, count);
  }
}

PTRAIN_INLINE void write_result(const HaltingTask& task, void* to, std::int64_t i, double value) {
  if (to != nullptr) halting_write(task.in_double, to, i, value);
}

// ----------------------------------------------------------------------------------- memory of a thread

using FloatRow = float[lanes];

// Of a chunk's units: h, 1 - h, p, 1 - p, w; the sum over tokens of R_n, then the gradient by u; F_n.
template <typename Value>
struct Units {
  Value (*h)[lanes], (*stop)[lanes], (*p)[lanes], (*q)[lanes], (*w)[lanes], (*pulled)[lanes], (*sums)[lanes];
};

// Arrays over blocks of a value per lane.
struct Room {
  Units<float> units;
  // In double where a row does not fit floats, and where a unit has many tokens: its errors are common to
  // them all, while their gradients cancel.
  Units<double> exact_units;
  Row* log_w;
  // of the rows: w where it is not the units'; w y_label then R_n; 1 / S
  FloatRow *row_w, *r, *inverse;
  // of the rows: what was taken from their logits; e^z of the label and the sum of the others'; what e^z is
  // multiplied by to give the gradient, and the label's own gradient; w / S
  FloatRow *shift, *own, *others, *factor, *label_grad, *answer_weight;
  float *push, *hold, *deep;  // of the rows, for dense targets
  float* exps;                // [N][rows * C]
  float* staging;             // [rows * C]
  float* product;             // likewise
  float* targets;             // likewise
  float* answer;              // likewise
  std::int32_t* row_of;       // of a tile's flat element, where classes are few
  Row* exact_r;               // of the rows in log space
  bool units_are_exact;  // whether exact_units holds this chunk
  bool log_w_is_known;
};

struct Tile {
  std::int64_t first_row;
  int rows;
  double most_scale;  // the largest scale of the task's gradient in the chunk
  std::int32_t label[lanes];  // -1: none
  std::int32_t place[lanes];  // of the label in the tile's [rows * C]; the row's first element if none
  std::int32_t unit[lanes];   // in the chunk
  float weight[lanes];        // of the label, or the sum of all targets; 0: nothing to learn from this row
  double task_scale[lanes], supervision_scale[lanes];
  float relative_scale[lanes];  // task_scale / most_scale
  double task[lanes], supervision[lanes];
  bool learns[lanes];  // some target is not 0
  bool exact[lanes];   // to be done in log space
  const FloatRow* w;
};

PTRAIN_INLINE bool is_narrow(const HaltingTask& task) { return task.classes < narrow_classes; }

// How many floats a block of a tile takes.
PTRAIN_INLINE std::int64_t room_size(const HaltingTask& task, const Tile& tile) {
  return (is_narrow(task) ? lanes : tile.rows) * task.classes;
}

template <typename Value>
Value* take(char* memory, std::int64_t& used, std::int64_t count) {
  Value* taken = memory == nullptr ? nullptr : reinterpret_cast<Value*>(memory + used);
  used += (count * static_cast<std::int64_t>(sizeof(Value)) + 63) / 64 * 64;
  return taken;
}

// Called first with null, to measure; returns how many bytes are used.
std::int64_t lay_out(const HaltingTask& task, const HaltingCut& cut, char* memory, Room& room) {
  std::int64_t used = 0;
  Units<float>& units = room.units;
  Units<double>& exact = room.exact_units;
  for (Row** rows : {&exact.h, &exact.stop, &exact.p, &exact.q, &exact.w, &exact.pulled, &exact.sums, &room.log_w,
                     &room.exact_r}) {
    *rows = take<Row>(memory, used, task.blocks);
  }
  if (task.in_double) return used;
  for (FloatRow** rows : {&units.h, &units.stop, &units.p, &units.q, &units.w, &units.pulled, &units.sums,
                          &room.row_w, &room.r, &room.inverse, &room.shift, &room.own, &room.others, &room.factor,
                          &room.label_grad, &room.answer_weight}) {
    *rows = take<FloatRow>(memory, used, task.blocks);
  }
  for (float** row : {&room.push, &room.hold, &room.deep}) *row = take<float>(memory, used, lanes);
  const std::int64_t size = (is_narrow(task) ? lanes : cut.tile_rows) * task.classes;
  room.exps = take<float>(memory, used, task.blocks * size);
  for (float** flat : {&room.staging, &room.product, &room.targets, &room.answer}) {
    *flat = take<float>(memory, used, size);
  }
  if (is_narrow(task)) room.row_of = take<std::int32_t>(memory, used, size);
  return used;
}

// ----------------------------------------------------------------------------------- rows and their elements

struct RowOfLane {
  FloatBits row;
};
struct OneRow {
  int row;
};

// The values of the rows that the elements belong to.
PTRAIN_INLINE Floats spread(const float* values, RowOfLane at) {
  if constexpr (float_lanes == lanes) return __builtin_shuffle(load<Floats>(values), at.row);
  Floats result;
  for (int k = 0; k < float_lanes; ++k) result[k] = values[at.row[k]];
  return result;
}
PTRAIN_INLINE Floats spread(const float* values, OneRow at) { return all(values[at.row]); }

// Calls body(first element, rows of the elements) for all vectors of a tile's [rows * C]. Few classes: sixteen
// rows, whether there are so many or not. Else row by row, the last vector of a row reaching back into
// the one before: body may be called twice for an element.
template <typename Body>
PTRAIN_INLINE void each_vector(const HaltingTask& task, const Room& room, const Tile& tile, Body body) {
  const std::int64_t classes = task.classes;
  if (is_narrow(task)) {
    for (std::int64_t k = 0; k < lanes * classes; k += float_lanes) {
      body(k, RowOfLane{load<FloatBits>(room.row_of + k)});
    }
    return;
  }
  for (int i = 0; i < tile.rows; ++i) {
    std::int64_t c = 0;
    for (; c + float_lanes <= classes; c += float_lanes) body(i * classes + c, OneRow{i});
    if (c < classes) body((i + 1) * classes - float_lanes, OneRow{i});
  }
}

// Elements flat[0], flat[1], ... of the sixteen rows of C classes in `from`.
PTRAIN_INLINE Floats column(const float* from, std::int64_t classes, FloatBits flat) {
  Floats result{};
  if constexpr (float_lanes == lanes) {
    const FloatBits place = flat & (lanes - 1), vector = flat / lanes;
    for (std::int64_t k = 0; k < classes; ++k) {
      const Floats part = __builtin_shuffle(load<Floats>(from + k * lanes), place);
      result = vector == static_cast<std::int32_t>(k) ? part : result;
    }
  } else {
    for (int k = 0; k < float_lanes; ++k) result[k] = from[flat[k]];
  }
  return result;
}

#if PTRAIN_VECTOR_BYTES == 64 && __has_builtin(__builtin_shufflevector)
#define PTRAIN_TURNS_QUADS 1
typedef float Quad __attribute__((vector_size(16)));
typedef float TwoQuads __attribute__((vector_size(32)));

// Four elements each of the rows j, j + 4, j + 8 and j + 12, `stride` apart.
PTRAIN_INLINE Floats four_quads(const float* from, std::int64_t stride) {
  const TwoQuads low = __builtin_shufflevector(load<Quad>(from), load<Quad>(from + 4 * stride), 0, 1, 2, 3, 4, 5, 6, 7);
  const TwoQuads high =
      __builtin_shufflevector(load<Quad>(from + 8 * stride), load<Quad>(from + 12 * stride), 0, 1, 2, 3, 4, 5, 6, 7);
  return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

// Four columns of sixteen rows: the rows' quads are turned within each quarter of the registers.
PTRAIN_INLINE void four_columns(const float* from, std::int64_t stride, Floats* to) {
  constexpr FloatBits ones_low = {0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29};
  constexpr FloatBits twos_low = {0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29};
  const Floats a = four_quads(from, stride), b = four_quads(from + stride, stride);
  const Floats c = four_quads(from + 2 * stride, stride), d = four_quads(from + 3 * stride, stride);
  const Floats ab = __builtin_shuffle(a, b, ones_low), cd = __builtin_shuffle(c, d, ones_low);
  const Floats ab_high = __builtin_shuffle(a, b, ones_low + 2), cd_high = __builtin_shuffle(c, d, ones_low + 2);
  to[0] = __builtin_shuffle(ab, cd, twos_low);
  to[1] = __builtin_shuffle(ab, cd, twos_low + 2);
  to[2] = __builtin_shuffle(ab_high, cd_high, twos_low);
  to[3] = __builtin_shuffle(ab_high, cd_high, twos_low + 2);
}
#else
#define PTRAIN_TURNS_QUADS 0
#endif

// Calls body(c, column c of the rows from lane v on) for all columns of sixteen rows of few classes.
template <typename Body>
PTRAIN_INLINE void each_column(const float* from, std::int64_t classes, int v, Body body) {
  std::int32_t c = 0;
#if PTRAIN_TURNS_QUADS
  if (classes >= 4) {
    for (std::int32_t start = 0; start < classes; start += 4) {
      const auto first = static_cast<std::int32_t>(start + 4 <= classes ? start : classes - 4);
      Floats columns[4];
      four_columns(from + first, classes, columns);
      // What the last four columns repeat is passed over.
      for (int k = 0; k < 4; ++k) {
        if (first + k >= start) body(first + k, columns[k]);
      }
    }
    return;
  }
#endif
  const FloatBits first = (float_lane + v) * static_cast<std::int32_t>(classes);
  for (; c < classes; ++c) body(c, column(from, classes, first + c));
}
#undef PTRAIN_TURNS_QUADS

// to[i] = the sum over the lanes of vectors[i].
PTRAIN_INLINE void sums_of_each(Floats* vectors, float* to) {
  for (int i = 0; i < lanes; i += float_lanes) {
    for (int width = float_lanes / 2; width > 0; width /= 2) {
      for (int k = 0; k < width; ++k) {
        const Floats a = vectors[i + 2 * k], b = vectors[i + 2 * k + 1];
        vectors[i + k] = __builtin_shuffle(a, b, float_lane * 2) + __builtin_shuffle(a, b, float_lane * 2 + 1);
      }
    }
    store(to + i, vectors[i]);
  }
}

// The sums of the rows, without the labels' elements, and these; `labels` of -1 leave out nothing.
PTRAIN_OUTLINE void row_sums(const HaltingTask& task, const Tile& tile, const float* from,
                             const std::int32_t* labels, float* sums, float* own) {
  const std::int64_t classes = task.classes;
  if (is_narrow(task)) {
    for (int v = 0; v < lanes; v += float_lanes) {
      const FloatBits label = load<FloatBits>(labels + v);
      Floats sum{}, mine{};
      each_column(from, classes, v, [&](std::int32_t c, Floats values) {
        const FloatBits here = label == c;
        sum += here ? Floats{} : values;
        mine = here ? values : mine;
      });
      store(sums + v, sum);
      store(own + v, mine);
    }
    return;
  }
  Floats totals[lanes];
  const std::int64_t whole = classes / float_lanes * float_lanes, last = classes - float_lanes;
  for (int i = 0; i < tile.rows; ++i) {
    const float* row = from + i * classes;
    const FloatBits label = FloatBits{} + labels[i];
    own[i] = labels[i] >= 0 ? row[labels[i]] : 0.0f;
    Floats total{};
    for (std::int64_t c = 0; c < whole;) {
      const std::int64_t end = whole - c < run_of_floats ? whole : c + run_of_floats;
      FloatBits ids = float_lane + static_cast<std::int32_t>(c);
      Floats sum{};
      for (; c < end; c += float_lanes) {
        sum += ids == label ? Floats{} : load<Floats>(row + c);
        ids += float_lanes;
      }
      total += sum;
    }
    if (whole < classes) {
      const FloatBits ids = float_lane + static_cast<std::int32_t>(last);
      const FloatBits out = (ids == label) | (ids < static_cast<std::int32_t>(whole));
      total += out ? Floats{} : load<Floats>(row + last);
    }
    totals[i] = total;
  }
  for (int i = tile.rows; i < lanes; ++i) {
    totals[i] = Floats{};
    own[i] = 0.0f;
  }
  sums_of_each(totals, sums);
}

PTRAIN_OUTLINE void row_maxima(const HaltingTask& task, const Tile& tile, const float* from, float* to) {
  const std::int64_t classes = task.classes;
  if (is_narrow(task)) {
    for (int v = 0; v < lanes; v += float_lanes) {
      Floats most = all(-__builtin_inff());
      each_column(from, classes, v, [&](std::int32_t, Floats values) { most = larger(values, most); });
      store(to + v, most);
    }
    return;
  }
  for (int i = 0; i < lanes; ++i) to[i] = 0.0f;
  for (int i = 0; i < tile.rows; ++i) {
    const float* row = from + i * classes;
    Floats most = load<Floats>(row + classes - float_lanes);
    for (std::int64_t c = 0; c + float_lanes <= classes; c += float_lanes) {
      most = larger(load<Floats>(row + c), most);
    }
    to[i] = largest_of(most);
  }
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

PTRAIN_INLINE void read_halting(const HaltingTask& task, std::int64_t n, std::int64_t first, int count, float* to) {
  const std::int64_t start = n * task.halting_stride + first;
  const float* from = as_floats(task.halting_type, task.halting, start, count, to);
  if (count == lanes) {
    for (int v = 0; v < lanes; v += float_lanes) store(to + v, load<Floats>(from + v));
  } else {
    for (int i = 0; i < lanes; ++i) to[i] = i < count ? from[i] : 0.0f;
  }
}

PTRAIN_INLINE void read_halting(const HaltingTask& task, std::int64_t n, std::int64_t first, int count, double* to) {
  for (int i = 0; i < lanes; ++i) {
    to[i] = i < count ? halting_number(task.halting_type, task.halting, n * task.halting_stride + first + i) : 0.0;
  }
}

// h, p and w of the units, and their regulariser. 1 - p is summed up from positive terms, p_{n-1} (1 - h_n):
// no cancellation.
template <typename Vector, typename Value>
PTRAIN_INLINE void units_forward(const HaltingTask& task, const Units<Value>& units, std::int64_t first, int count,
                                 Value* regulariser) {
  constexpr int step = sizeof(Vector) / sizeof(Value);
  const std::int64_t blocks = task.blocks;
  for (std::int64_t n = 0; n < blocks; ++n) read_halting(task, n, first, count, units.h[n]);
  for (int v = 0; v < lanes; v += step) {
    Vector p = all(Value{1}), q{}, sum{};
    for (std::int64_t n = 0; n < blocks; ++n) {
      const Vector u = load<Vector>(units.h[n] + v);
      const Vector t = exp_of(u < Value{0} ? u : -u);
      const Vector big = Value{1} / (Value{1} + t);
      const Vector small = t * big;
      const Vector h = u >= Value{0} ? big : small;
      const Vector stop = u >= Value{0} ? small : big;
      store(units.h[n] + v, h);
      store(units.stop[n] + v, stop);
      q += p * stop;
      p *= h;
      store(units.p[n] + v, p);
      store(units.q[n] + v, q);
      sum += static_cast<Value>(task.alpha[n]) * h + static_cast<Value>(task.beta[n]) * p;
    }
    store(regulariser + v, sum);
    Vector after = all(Value{1}), total{};
    for (std::int64_t n = blocks - 1; n >= 0; --n) {
      const Vector w = n > 0 ? load<Vector>(units.p[n - 1] + v) * after : after;
      store(units.w[n] + v, w);
      total += w;
      if (n > 0) after *= load<Vector>(units.q[n - 1] + v);
    }
    // They add up to 1: what is off is the products' rounding.
    const Vector correction = Value{1} / total;
    for (std::int64_t n = 0; n < blocks; ++n) {
      store(units.w[n] + v, load<Vector>(units.w[n] + v) * correction);
    }
  }
}

// The gradient by the halting logits, from pulled[n] = sum over the unit's rows of R_n times the relative
// scale; it replaces them. `scale` is what they are relative to.
template <typename Vector, typename Value>
PTRAIN_INLINE void units_backward(const HaltingTask& task, const Units<Value>& units, double scale,
                                  const double* regulariser_scale) {
  constexpr int step = sizeof(Vector) / sizeof(Value);
  constexpr Value least = sizeof(Value) == 8 ? static_cast<Value>(1e-290) : static_cast<Value>(1e-37f);
  const std::int64_t blocks = task.blocks;
  const auto task_scale = static_cast<Value>(scale);
  for (int v = 0; v < lanes; v += step) {
    // F_n = R_1 + ... + R_n: only positive terms.
    Vector sum{}, grad;
    for (int i = 0; i < step; ++i) grad[i] = static_cast<Value>(regulariser_scale[v + i]);
    for (std::int64_t n = 0; n < blocks; ++n) {
      sum += load<Vector>(units.pulled[n] + v);
      store(units.sums[n] + v, sum);
    }
    Vector pull{}, beta_p{}, later{};
    for (std::int64_t n = blocks - 1; n >= 0; --n) {
      const Vector p = load<Vector>(units.p[n] + v), q = load<Vector>(units.q[n] + v);
      const Vector here = load<Vector>(units.pulled[n] + v);
      if (n + 1 < blocks) {
        // Multiplied by 1 - h <= 1 - p below, so below this it would come to nothing.
        const Vector odds = q < least ? Vector{} : p / q;
        pull += odds * load<Vector>(units.sums[n] + v) - later;
      }
      later = here;
      beta_p += static_cast<Value>(task.beta[n]) * p;
      const Vector h = load<Vector>(units.h[n] + v), stop = load<Vector>(units.stop[n] + v);
      store(units.pulled[n] + v, stop * (task_scale * pull + grad * (static_cast<Value>(task.alpha[n]) * h + beta_p)));
    }
  }
}

PTRAIN_OUTLINE void exact_units_forward(const HaltingTask& task, Room& room, std::int64_t first, int count,
                                        double* regulariser) {
  units_forward<Doubles>(task, room.exact_units, first, count, regulariser);
  room.units_are_exact = true;
}

PTRAIN_OUTLINE void float_units_forward(const HaltingTask& task, Room& room, std::int64_t first, int count,
                                        double* regulariser) {
  FloatRow values;
  units_forward<Floats>(task, room.units, first, count, values);
  for (int i = 0; i < lanes; ++i) regulariser[i] = values[i];
}

// What is wanted of the units: their regulariser, p and w.
PTRAIN_OUTLINE void write_units(const HaltingTask& task, const Room& room, std::int64_t first, int count,
                                const bool* counted, const double* regulariser, HaltingSums& sums) {
  for (int i = 0; i < count; ++i) {
    const double value = counted[i] ? regulariser[i] : 0.0;
    sums.regulariser += value;
    write_result(task, task.regulariser, first + i, value);
  }
  if (task.halting_p == nullptr && task.exit_weights == nullptr) return;
  for (std::int64_t n = 0; n < task.blocks; ++n) {
    for (int i = 0; i < count; ++i) {
      const bool exact = room.units_are_exact;
      const std::int64_t at = n * task.units + first + i;
      write_result(task, task.halting_p, at, exact ? room.exact_units.p[n][i] : room.units.p[n][i]);
      write_result(task, task.exit_weights, at, exact ? room.exact_units.w[n][i] : room.units.w[n][i]);
    }
  }
}

// Of the units that move; the others' gradient is 0 whatever their logits are.
PTRAIN_OUTLINE void write_halting_grad(const HaltingTask& task, const Room& room, std::int64_t first, int count,
                                       const std::int32_t* moves) {
  for (std::int64_t n = 0; n < task.blocks; ++n) {
    const std::int64_t start = n * task.units + first;
    if (room.units_are_exact) {
      const double* grads = room.exact_units.pulled[n];
      for (int i = 0; i < count; ++i) {
        write_number(task.halting_type, task.grad_halting, start + i, moves[i] ? grads[i] : 0.0);
      }
      continue;
    }
    float* grads = room.units.pulled[n];
    const bool direct = count == lanes && task.halting_type == HaltingType::float32;
    float* to = direct ? static_cast<float*>(task.grad_halting) + start : grads;
    for (int v = 0; v < lanes; v += float_lanes) {
      store(to + v, load<FloatBits>(moves + v) != 0 ? load<Floats>(grads + v) : Floats{});
    }
    if (!direct) write_floats(task.halting_type, grads, task.grad_halting, start, count);
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

PTRAIN_OUTLINE void read_labels(const HaltingTask& task, Tile& tile, std::int64_t first_unit) {
  const bool has_scale = task.grad_task.values != nullptr;
  std::int64_t unit = tile.first_row / task.tokens, token = tile.first_row % task.tokens;
  for (int i = 0; i < lanes; ++i) {
    const std::int64_t row = tile.first_row + i;
    tile.label[i] = -1;
    tile.unit[i] = 0;
    tile.weight[i] = 0.0f;
    tile.task[i] = tile.supervision[i] = tile.task_scale[i] = tile.supervision_scale[i] = 0.0;
    tile.relative_scale[i] = 0.0f;
    tile.learns[i] = tile.exact[i] = false;
    tile.place[i] = static_cast<std::int32_t>(i * task.classes);
    if (i >= tile.rows) continue;
    tile.unit[i] = static_cast<std::int32_t>(unit - first_unit);
    if (++token == task.tokens) ++unit, token = 0;
    if (has_scale) {
      tile.task_scale[i] = task.grad_task.values[task.grad_task.step * row];
      tile.supervision_scale[i] = task.grad_supervision.values[task.grad_supervision.step * row];
      tile.relative_scale[i] = static_cast<float>(tile.task_scale[i] / tile.most_scale);
    }
    if (task.labels == nullptr) {
      tile.learns[i] = has_label(task, row);
    } else {
      const std::int64_t label = halting_label(task, row);
      if (label == task.ignore_index) continue;
      const double weight = class_weight(task, label);
      tile.label[i] = static_cast<std::int32_t>(label);
      tile.place[i] += static_cast<std::int32_t>(label);
      tile.weight[i] = static_cast<float>(weight);
      tile.learns[i] = is_dense(task) || weight != 0.0;
    }
  }
}

const char* address_of(const HaltingTask& task, std::int64_t element) {
  return static_cast<const char*>(task.logits) + element * bytes_of(task.logits_type);
}

constexpr std::int32_t no_labels[lanes] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};

// A block's e^z for the tile. Where logits are large, and with dense
// targets, the row's maximum is taken from them first. With dense targets `own` becomes
// sum_c t_c (z_c - max), for the supervision.
PTRAIN_OUTLINE void block_softmax(const HaltingTask& task, const Room& room, const Tile& tile, std::int64_t n,
                                  bool dense) {
  const std::int64_t classes = task.classes, count = tile.rows * classes;
  const std::int64_t start = n * task.logits_stride + tile.first_row * classes;
  fetch_soon(address_of(task, start + count), count * bytes_of(task.logits_type));
  const float* z = as_floats(task.logits_type, task.logits, start, count, room.staging);
  if (is_narrow(task) && tile.rows < lanes) {
    if (z != room.staging) {
      __builtin_memcpy(room.staging, z, sizeof(float) * static_cast<std::size_t>(count));
    }
    __builtin_memset(room.staging + count, 0, sizeof(float) * static_cast<std::size_t>(lanes * classes - count));
    z = room.staging;
  }
  float* exps = room.exps + n * room_size(task, tile);
  Floats most{};
  if (!dense) {
    const std::int64_t size = room_size(task, tile);
    for (std::int64_t next = 0; next < size; next += float_lanes) {
      const std::int64_t k = next + float_lanes <= size ? next : size - float_lanes;
      const Floats x = load<Floats>(z + k);
      most = larger(magnitude_of(x), most);
      store(exps + k, exp_near(x));
    }
  }
  if (dense || !(largest_of(most) <= most_plain_logit)) {
    row_maxima(task, tile, z, room.shift[n]);
    each_vector(task, room, tile, [&](std::int64_t k, auto at) {
      const Floats x = load<Floats>(z + k), top = spread(room.shift[n], at);
      const Floats gap = x - top;
      const Floats e = exp_of(gap);
      // What the subtraction lost: far below the maximum that is many units in the last place of e.
      const Floats back = gap + top;
      const Floats lost = (x - back) + (top - (back - gap));
      store(exps + k, lost == lost ? e + e * lost : e);
      if (dense && task.eta != nullptr) {
        const Floats target = load<Floats>(room.targets + k);
        store(room.product + k, target != 0.0f ? target * gap : Floats{});
      }
    });
  } else {
    __builtin_memset(room.shift[n], 0, sizeof(FloatRow));
  }
  if (dense && task.eta != nullptr) row_sums(task, tile, room.product, no_labels, room.own[n], room.label_grad[n]);
}

// sum_n eta_n -log y_n,label of the rows, times their weight.
PTRAIN_OUTLINE void supervise_labels(const HaltingTask& task, const Room& room, Tile& tile, std::int64_t n) {
  for (int i = 0; i < tile.rows; ++i) {
    if (tile.weight[i] == 0.0f) continue;
    const double own = room.own[n][i], others = room.others[n][i];
    double cost;
    if (own > 1e-30) {
      cost = halting_log1p(others / own);
    } else {
      const std::int64_t at = n * task.logits_stride + (tile.first_row + i) * task.classes + tile.label[i];
      const double z = halting_number(task.logits_type, task.logits, at);
      cost = halting_log(own + others) - (z - room.shift[n][i]);
    }
    tile.supervision[i] += task.eta[n] * tile.weight[i] * cost;
  }
}

// With one class that counts: a_N of the label, R_n, and by what the exponentials are multiplied.
PTRAIN_OUTLINE void weigh_labels(const HaltingTask& task, const Room& room, Tile& tile, bool gradients) {
  const std::int64_t blocks = task.blocks;
  FloatRow answers, misses, task_scale, supervision_scale;
  for (int i = 0; i < lanes; ++i) {
    task_scale[i] = static_cast<float>(tile.task_scale[i]);
    supervision_scale[i] = static_cast<float>(tile.supervision_scale[i]);
  }
  for (int v = 0; v < lanes; v += float_lanes) {
    const Floats weight = load<Floats>(tile.weight + v);
    const FloatBits learns = weight != 0.0f;
    Floats answer{}, miss{};
    for (std::int64_t n = 0; n < blocks; ++n) {
      const Floats own = load<Floats>(room.own[n] + v), others = load<Floats>(room.others[n] + v);
      const Floats inverse = 1.0f / (own + others);
      const Floats share = load<Floats>(tile.w[n] + v) * inverse;
      const Floats part = share * own;
      answer += part;
      miss += share * others;
      store(room.r[n] + v, part);
      store(room.inverse[n] + v, inverse);
      store(room.answer_weight[n] + v, share);
    }
    store(answers + v, answer);
    store(misses + v, miss);
    if (!gradients) continue;
    const Floats rate = learns ? weight / answer : Floats{};
    const Floats relative = load<Floats>(tile.relative_scale + v);
    const Floats deep = load<Floats>(supervision_scale + v) * weight;
    for (std::int64_t n = 0; n < blocks; ++n) {
      const Floats r = learns ? load<Floats>(room.r[n] + v) * rate : Floats{};
      store(room.r[n] + v, relative * r);
      Floats factor = load<Floats>(task_scale + v) * r;
      if (task.eta != nullptr) factor += deep * static_cast<float>(task.eta[n]);
      factor = learns ? factor * load<Floats>(room.inverse[n] + v) : Floats{};
      store(room.factor[n] + v, factor);
      const Floats own_grad = -(factor * load<Floats>(room.others[n] + v));
      store(room.label_grad[n] + v, learns ? own_grad : Floats{});
    }
  }
  // Near 1 the answer is known by what it misses: the loss is right in all its digits.
  for (int v = 0; v < lanes; v += double_lanes) {
    const Doubles answer = widen(load<HalfFloats>(answers + v));
    const Doubles value = answer > 0.5 ? 1.0 - widen(load<HalfFloats>(misses + v)) : answer;
    store(tile.task + v, -log_of(value) * widen(load<HalfFloats>(tile.weight + v)));
  }
  for (int i = 0; i < lanes; ++i) {
    if (tile.weight[i] == 0.0f) tile.task[i] = 0.0;
    tile.exact[i] = tile.weight[i] != 0.0f && !(answers[i] >= least_answer);
  }
}

// a_N of all classes, and their logarithms into `staging`.
PTRAIN_OUTLINE void all_answers(const HaltingTask& task, const Room& room, const Tile& tile) {
  const std::int64_t size = room_size(task, tile);
  each_vector(task, room, tile, [&](std::int64_t k, auto at) {
    Floats sum{};
    for (std::int64_t n = 0; n < task.blocks; ++n) {
      sum += spread(room.answer_weight[n], at) * load<Floats>(room.exps + n * size + k);
    }
    store(room.answer + k, sum);
  });
  each_vector(task, room, tile, [&](std::int64_t k, auto) {
    for (std::int64_t d = k; d < k + float_lanes; d += double_lanes) {
      store(room.staging + d, narrow(log_of(widen(load<HalfFloats>(room.answer + d)))));
    }
  });
}

// log a_N, where it is wanted.
PTRAIN_OUTLINE void write_answers(const HaltingTask& task, const Room& room, Tile& tile, bool dense) {
  const std::int64_t classes = task.classes;
  float* to = static_cast<float*>(task.log_answer) + tile.first_row * classes;
  for (int i = 0; i < tile.rows; ++i) {
    if (!dense && tile.weight[i] != 0.0f) {
      room.staging[i * classes + tile.label[i]] = static_cast<float>(-tile.task[i] / tile.weight[i]);
    }
    bool fits = true;
    for (std::int64_t c = 0; c < classes; ++c) fits &= room.answer[i * classes + c] >= least_answer;
    tile.exact[i] |= !fits;
  }
  __builtin_memcpy(to, room.staging, sizeof(float) * static_cast<std::size_t>(tile.rows * classes));
}

// ----------------------------------------------------------------------------------- dense targets

PTRAIN_OUTLINE void read_targets(const HaltingTask& task, const Room& room, Tile& tile) {
  const std::int64_t classes = task.classes;
  for (int i = 0; i < (is_narrow(task) ? lanes : tile.rows); ++i) {
    double sum = 0.0;
    bool any = false;
    for (std::int64_t c = 0; c < classes; ++c) {
      const double target = tile.learns[i] ? target_of(task, tile.first_row + i, tile.label[i], c) : 0.0;
      room.targets[i * classes + c] = static_cast<float>(target);
      sum += target;
      any |= target != 0.0;
    }
    tile.weight[i] = static_cast<float>(sum);
    tile.learns[i] = any;
  }
}

// With targets for all classes: a_N, and t_c / a_c in its place; R_n.
PTRAIN_OUTLINE void weigh_targets(const HaltingTask& task, const Room& room, Tile& tile, bool gradients) {
  const std::int64_t blocks = task.blocks, classes = task.classes, size = room_size(task, tile);
  for (std::int64_t n = 0; n < blocks; ++n) {
    for (int v = 0; v < lanes; v += float_lanes) {
      const Floats inverse = 1.0f / load<Floats>(room.others[n] + v);
      store(room.inverse[n] + v, inverse);
      store(room.answer_weight[n] + v, load<Floats>(tile.w[n] + v) * inverse);
    }
    if (task.eta == nullptr || task.eta[n] == 0.0) continue;
    for (int i = 0; i < tile.rows; ++i) {
      const double cost = tile.weight[i] * halting_log(room.others[n][i]) - room.own[n][i];
      if (tile.learns[i]) tile.supervision[i] += task.eta[n] * cost;
    }
  }
  all_answers(task, room, tile);
  for (int i = 0; i < tile.rows; ++i) {
    if (!tile.learns[i]) continue;
    bool fits = true;
    for (std::int64_t k = i * classes; k < (i + 1) * classes; ++k) {
      const float target = room.targets[k];
      fits &= target == 0.0f || room.answer[k] >= least_answer;
      if (target != 0.0f) tile.task[i] -= static_cast<double>(target) * room.staging[k];
    }
    tile.exact[i] = !fits;
  }
  if (task.log_answer != nullptr) write_answers(task, room, tile, true);
  if (!gradients) return;
  each_vector(task, room, tile, [&](std::int64_t k, auto) {
    const Floats target = load<Floats>(room.targets + k);
    store(room.staging + k, target != 0.0f ? target / load<Floats>(room.answer + k) : Floats{});
  });
  for (std::int64_t n = 0; n < blocks; ++n) {
    const float* exps = room.exps + n * size;
    each_vector(task, room, tile, [&](std::int64_t k, auto) {
      store(room.product + k, load<Floats>(room.staging + k) * load<Floats>(exps + k));
    });
    row_sums(task, tile, room.product, no_labels, room.factor[n], room.label_grad[n]);
    for (int i = 0; i < lanes; ++i) {
      const float r = tile.learns[i] ? room.answer_weight[n][i] * room.factor[n][i] : 0.0f;
      room.factor[n][i] = r;
      room.r[n][i] = tile.relative_scale[i] * r;
    }
  }
  // The writing goes through `staging`.
  float* rates = room.staging;
  each_vector(task, room, tile, [&](std::int64_t k, auto) { store(room.answer + k, load<Floats>(rates + k)); });
}

// ----------------------------------------------------------------------------------- log space, double

// As many rows as a register has doubles, [N][C] of each.
struct Exact {
  Doubles *y, *x, *target;  // y_n,c; z_n,c, then log(w y), then w y / a, then the gradient; t_c
  Doubles *most, *log_sum;  // [N] log of the sum of e^z: its largest z, and what the others add
  int row[double_lanes];    // in the tile
  int count;
};

std::int64_t exact_size(const HaltingTask& task) {
  return static_cast<std::int64_t>(sizeof(Doubles)) * ((2 * task.blocks + 1) * task.classes + 2 * task.blocks);
}

// Everything for these rows. The gradient by the logits stays in `x`: see write_exact.
PTRAIN_OUTLINE void exact_rows(const HaltingTask& task, const Room& room, Tile& tile, Exact& exact,
                               bool gradients) {
  const std::int64_t blocks = task.blocks, classes = task.classes;
  double lane[double_lanes];
  Doubles weight{}, task_scale{}, supervision_scale{};
  std::int64_t row[double_lanes];
  std::int32_t unit[double_lanes];
  for (int k = 0; k < double_lanes; ++k) {
    const int i = exact.row[k < exact.count ? k : 0];
    row[k] = tile.first_row + i;
    unit[k] = tile.unit[i];
    task_scale[k] = tile.task_scale[i];
    supervision_scale[k] = tile.supervision_scale[i];
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
  Doubles supervision{}, top = all(-__builtin_inf());
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
      y[c] = exp_of(x[c] - most);
      sum += y[c];
    }
    const Doubles log_sum = log_of(sum), inverse = 1.0 / sum;
    exact.most[n] = most;
    exact.log_sum[n] = log_sum;
    top = larger(most, top);
    Doubles cost{};
    for (std::int64_t c = 0; c < classes; ++c) {
      const Doubles log_y = x[c] - most - log_sum;
      cost -= exact.target[c] != 0.0 ? exact.target[c] * log_y : all(0.0);
      y[c] *= inverse;
    }
    if (task.eta != nullptr && task.eta[n] != 0.0) supervision += task.eta[n] * cost;
  }
  Doubles loss{};
  for (std::int64_t c = 0; c < classes; ++c) {
    // Blocks are told apart by differences of logits, small ones of large numbers among them: so
    // like is taken from like before anything joins in. At -1e30 log y_n itself has no digit left.
    Doubles largest = all(-__builtin_inf());
    for (std::int64_t n = 0; n < blocks; ++n) largest = larger(exact.x[n * classes + c], largest);
    largest = largest == -__builtin_inf() ? all(0.0) : largest;
    Doubles most = all(-__builtin_inf());
    for (std::int64_t n = 0; n < blocks; ++n) {
      for (int k = 0; k < double_lanes; ++k) lane[k] = room.log_w[n][unit[k]];
      Doubles& x = exact.x[n * classes + c];
      x = load<Doubles>(lane) + ((x - largest) - (exact.most[n] - top)) - exact.log_sum[n];
      most = larger(x, most);
    }
    const Doubles base = most == -__builtin_inf() ? all(0.0) : most;
    Doubles sum{};
    for (std::int64_t n = 0; n < blocks; ++n) {
      Doubles& x = exact.x[n * classes + c];
      x = exp_of(x - base);
      sum += x;
    }
    const Doubles log_answer = (largest - top) + (base + log_of(sum));
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
      room.exact_r[n][exact.row[k]] = learns[k] ? task_scale[k] / tile.most_scale * r[k] : 0.0;
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

PTRAIN_OUTLINE void write_gradient(const HaltingTask& task, const Room& room, const Tile& tile, bool dense) {
  const std::int64_t classes = task.classes, count = tile.rows * classes, size = room_size(task, tile);
  const bool is_whole = !is_narrow(task) || tile.rows == lanes;
  const bool direct = task.logits_type == HaltingType::float32 && is_whole;
  for (std::int64_t n = 0; n < task.blocks; ++n) {
    const float* exps = room.exps + n * size;
    const std::int64_t start = n * task.grad_logits_stride + tile.first_row * classes;
    float* to = direct ? static_cast<float*>(task.grad_logits) + start : room.staging;
    if (dense) {
      const float eta = task.eta == nullptr ? 0.0f : static_cast<float>(task.eta[n]);
      for (int i = 0; i < lanes; ++i) {
        const auto scale = static_cast<float>(tile.task_scale[i]);
        const float deep = static_cast<float>(tile.supervision_scale[i]) * eta;
        const bool learns = tile.learns[i];
        room.push[i] = learns ? room.inverse[n][i] * (scale * room.factor[n][i] + deep * tile.weight[i]) : 0.0f;
        room.hold[i] = learns ? scale * room.answer_weight[n][i] : 0.0f;
        room.deep[i] = learns ? deep : 0.0f;
      }
      each_vector(task, room, tile, [&](std::int64_t k, auto at) {
        const Floats push = spread(room.push, at), hold = spread(room.hold, at), deep = spread(room.deep, at);
        const Floats slope = push - hold * load<Floats>(room.answer + k);
        const Floats pushed = slope != 0.0f ? load<Floats>(exps + k) * slope : Floats{};
        store(to + k, pushed - deep * load<Floats>(room.targets + k));
      });
    } else {
      each_vector(task, room, tile, [&](std::int64_t k, auto at) {
        const Floats factor = spread(room.factor[n], at);
        store(to + k, factor != 0.0f ? load<Floats>(exps + k) * factor : Floats{});
      });
      // A row without a label gets the 0 that it has.
      const float* own = room.label_grad[n];
      for (int i = 0; i < tile.rows; ++i) to[tile.place[i]] = own[i];
    }
    if (!direct) write_floats(task.logits_type, to, task.grad_logits, start, count);
  }
}

// ----------------------------------------------------------------------------------- tiles and chunks

PTRAIN_OUTLINE void run_exact_rows(const HaltingTask& task, Room& room, HaltingMemory& memory, Tile& tile,
                                   Exact* exact, int& groups, std::int64_t first_unit, int units) {
  for (int i = 0; i < tile.rows; ++i) {
    if (!tile.exact[i]) continue;
    if (groups == 0 || exact[groups - 1].count == double_lanes) {
      char* from = memory.exact(groups, exact_size(task));
      exact[groups].y = reinterpret_cast<Doubles*>(from);
      exact[groups].x = exact[groups].y + task.blocks * task.classes;
      exact[groups].target = exact[groups].x + task.blocks * task.classes;
      exact[groups].most = exact[groups].target + task.classes;
      exact[groups].log_sum = exact[groups].most + task.blocks;
      exact[groups++].count = 0;
    }
    Exact& group = exact[groups - 1];
    group.row[group.count++] = i;
  }
  if (groups == 0) return;
  Row regulariser;
  if (!room.units_are_exact) exact_units_forward(task, room, first_unit, units, regulariser);
  if (!room.log_w_is_known) {
    for (std::int64_t n = 0; n < task.blocks; ++n) read_halting(task, n, first_unit, units, room.log_w[n]);
    halting_log_weights(room.log_w[0], task.blocks, lanes);
  }
  room.log_w_is_known = true;
  const bool gradients = task.grad_logits != nullptr || task.grad_halting != nullptr;
  for (int k = 0; k < groups; ++k) exact_rows(task, room, tile, exact[k], gradients);
  for (std::int64_t n = 0; n < task.blocks && gradients && !task.in_double; ++n) {
    for (int i = 0; i < tile.rows; ++i) {
      if (tile.exact[i]) room.r[n][i] = static_cast<float>(room.exact_r[n][i]);
    }
  }
}

PTRAIN_OUTLINE void run_tile(const HaltingTask& task, Room& room, HaltingMemory& memory, Tile& tile,
                             std::int64_t first_unit, int units) {
  const bool gradients = task.grad_logits != nullptr || task.grad_halting != nullptr;
  const bool dense = is_dense(task);
  if (task.in_double) {
    for (int i = 0; i < tile.rows; ++i) tile.exact[i] = true;
  } else {
    tile.w = room.units.w;
    if (task.tokens > 1 || tile.first_row != first_unit) {
      for (std::int64_t n = 0; n < task.blocks; ++n) {
        for (int v = 0; v < lanes; v += float_lanes) {
          store(room.row_w[n] + v, spread(room.units.w[n], RowOfLane{load<FloatBits>(tile.unit + v)}));
        }
      }
      tile.w = room.row_w;
    }
    if (dense) read_targets(task, room, tile);
    for (std::int64_t n = 0; n < task.blocks; ++n) {
      block_softmax(task, room, tile, n, dense);
    }
    // Not at once: the vectors have left for the cache, where they can be read at any place.
    for (std::int64_t n = 0; n < task.blocks; ++n) {
      const float* exps = room.exps + n * room_size(task, tile);
      row_sums(task, tile, exps, dense ? no_labels : tile.label, room.others[n], dense ? room.label_grad[n] : room.own[n]);
      if (!dense && task.eta != nullptr && task.eta[n] != 0.0) supervise_labels(task, room, tile, n);
    }
    if (dense) {
      weigh_targets(task, room, tile, gradients);
    } else {
      weigh_labels(task, room, tile, gradients);
      if (task.log_answer != nullptr) {
        all_answers(task, room, tile);
        write_answers(task, room, tile, false);
      }
    }
  }
  // The logits may lie where the gradient goes: the exact rows are read before any is written.
  Exact exact[double_steps];
  int groups = 0;
  run_exact_rows(task, room, memory, tile, exact, groups, first_unit, units);
  if (task.grad_logits == nullptr) return;
  if (!task.in_double) write_gradient(task, room, tile, dense);
  for (int k = 0; k < groups; ++k) write_exact(task, tile, exact[k]);
}

template <typename From, typename To>
PTRAIN_INLINE void add_to_units(const Tile& tile, std::int64_t blocks, const From (*r)[lanes], To (*pulled)[lanes]) {
  for (std::int64_t n = 0; n < blocks; ++n) {
    for (int i = 0; i < tile.rows; ++i) pulled[n][tile.unit[i]] += r[n][i];
  }
}

// The largest scale of the task's gradient in the chunk.
double most_scale_of(const HaltingTask& task, std::int64_t begin, std::int64_t end) {
  double most = 0.0;
  if (task.grad_task.values == nullptr) return 1.0;
  if (task.grad_task.step == 0) end = begin + 1;
  for (std::int64_t row = begin; row < end; ++row) {
    const double scale = task.grad_task.values[task.grad_task.step * row];
    most = scale > most ? scale : -scale > most ? -scale : most;
  }
  return most == 0.0 ? 1.0 : most;
}

HaltingSums run_chunk(const HaltingTask& task, const HaltingCut& cut, Room& room,
                      HaltingMemory& memory, std::int64_t first, int count) {
  HaltingSums sums;
  bool counted[lanes] = {};
  std::int32_t moves[lanes] = {};
  if (task.tokens == 1 && task.mask == nullptr && task.labels != nullptr) {
    for (int i = 0; i < count; ++i) counted[i] = halting_label(task, first + i) != task.ignore_index;
  } else {
    for (int i = 0; i < count; ++i) counted[i] = is_regularised(task, first + i);
  }
  const std::size_t blocks = static_cast<std::size_t>(task.blocks);
  room.units_are_exact = room.log_w_is_known = false;
  const bool in_floats = !task.in_double && task.tokens == 1;
  Row regulariser;
  if (in_floats) {
    float_units_forward(task, room, first, count, regulariser);
    __builtin_memset(room.units.pulled, 0, sizeof(FloatRow) * blocks);
  } else {
    exact_units_forward(task, room, first, count, regulariser);
    __builtin_memset(room.exact_units.pulled, 0, sizeof(Row) * blocks);
    for (std::int64_t n = 0; n < task.blocks && !task.in_double; ++n) {
      for (int i = 0; i < lanes; ++i) room.units.w[n][i] = static_cast<float>(room.exact_units.w[n][i]);
    }
  }
  write_units(task, room, first, count, counted, regulariser, sums);
  const bool gradients = task.grad_logits != nullptr || task.grad_halting != nullptr;
  const std::int64_t last_row = (first + count) * task.tokens;
  const double most_scale = most_scale_of(task, first * task.tokens, last_row);
  for (std::int64_t row = first * task.tokens; row < last_row; row += cut.tile_rows) {
    Tile tile;
    tile.first_row = row;
    tile.rows = static_cast<int>(last_row - row < cut.tile_rows ? last_row - row : cut.tile_rows);
    tile.most_scale = most_scale;
    read_labels(task, tile, first);
    run_tile(task, room, memory, tile, first, count);
    for (int i = 0; i < tile.rows; ++i) {
      sums.task += tile.task[i];
      sums.supervision += tile.supervision[i];
      write_result(task, task.task, row + i, tile.task[i]);
      write_result(task, task.supervision, row + i, tile.supervision[i]);
      moves[tile.unit[i]] |= tile.learns[i] ? 1 : 0;
    }
    if (!gradients) continue;
    if (task.in_double) {
      add_to_units(tile, task.blocks, room.exact_r, room.exact_units.pulled);
    } else if (!in_floats) {
      add_to_units(tile, task.blocks, room.r, room.exact_units.pulled);
    } else if (tile.rows == count) {
      __builtin_memcpy(room.units.pulled, room.r, sizeof(FloatRow) * blocks);
    } else {
      add_to_units(tile, task.blocks, room.r, room.units.pulled);
    }
  }
  if (task.grad_halting == nullptr) return sums;
  double regulariser_scale[lanes] = {};
  for (int i = 0; i < count; ++i) {
    if (!counted[i]) continue;
    regulariser_scale[i] = task.grad_regulariser.values[task.grad_regulariser.step * (first + i)];
    moves[i] |= regulariser_scale[i] != 0.0 ? 1 : 0;
  }
  if (room.units_are_exact) {
    for (std::int64_t n = 0; n < task.blocks && in_floats; ++n) {
      for (int i = 0; i < lanes; ++i) room.exact_units.pulled[n][i] = room.units.pulled[n][i];
    }
    units_backward<Doubles>(task, room.exact_units, most_scale, regulariser_scale);
  } else {
    units_backward<Floats>(task, room.units, most_scale, regulariser_scale);
  }
  write_halting_grad(task, room, first, count, moves);
  return sums;
}

void run_parts(const HaltingTask& task, const HaltingCut& cut, std::int64_t begin, std::int64_t end,
               HaltingSums* sums_of) {
  Room room{};
  HaltingMemory memory(lay_out(task, cut, nullptr, room));
  lay_out(task, cut, memory.all(), room);
  if (room.row_of != nullptr) {
    for (std::int64_t k = 0, c = 0, row = 0; k < lanes * task.classes; ++k) {
      room.row_of[k] = static_cast<std::int32_t>(row);
      if (++c == task.classes) ++row, c = 0;
    }
  }
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
