// The moving average against a loop of five lines, for every dtype, awkward sizes, layouts and threads, with
// every instruction set that the processor has.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <thread>
#include <type_traits>
#include <vector>

#include "../core/ema.h"
#include "../core/isa.h"
#include "../core/numeric.h"
#include "../core/probe.h"
#include "check.h"
#include "threads.h"

using namespace ptrain;

namespace {

const std::vector<std::int64_t> small_sizes = {0, 1, 63, 64, 65, 0, 16384, 16385};
const std::vector<std::int64_t> awkward_sizes = {0, 1, 63, 64, 65, 200003, 0, 16384, 16385};
const std::vector<double> decays = {0.0, 0.1, 0.5, 0.999, 1.0};

void update(const std::vector<EmaTensor>& tensors, double decay, ParallelFor parallel_for = serial_for) {
  const auto count = static_cast<std::int64_t>(tensors.size());
  ema_update(tensors.data(), ema_starts(tensors.data(), count).data(), count, decay, parallel_for);
}

double read(WeightType type, const std::vector<unsigned char>& bytes, std::int64_t i) {
  std::uint16_t half;
  float single;
  double full;
  switch (type) {
    case WeightType::float32:
      std::memcpy(&single, bytes.data() + 4 * i, 4);
      return single;
    case WeightType::float64:
      std::memcpy(&full, bytes.data() + 8 * i, 8);
      return full;
    default:
      std::memcpy(&half, bytes.data() + 2 * i, 2);
      return type == WeightType::bfloat16 ? float_from_bfloat16(half) : float_from_float16(half);
  }
}

template <typename Value>
void put(std::vector<unsigned char>& bytes, std::int64_t i, Value value) {
  std::memcpy(bytes.data() + sizeof(Value) * i, &value, sizeof(Value));
}

// Weights of any size and sign; 16-bit ones are random bits without infinity and NaN.
std::vector<unsigned char> random_weights(WeightType type, std::int64_t size, std::mt19937& random) {
  const int width = type == WeightType::float64 ? 8 : type == WeightType::float32 ? 4 : 2;
  std::vector<unsigned char> bytes(static_cast<std::size_t>(size * width));
  std::normal_distribution<double> normal;
  for (std::int64_t i = 0; i < size; ++i) {
    if (width == 8) put(bytes, i, normal(random));
    if (width == 4) put(bytes, i, static_cast<float>(normal(random)));
    if (width == 2) put(bytes, i, static_cast<std::uint16_t>(random() & 0xbbffu));
  }
  return bytes;
}

struct Model {
  std::vector<std::vector<unsigned char>> weights;
  std::vector<std::vector<float>> shadows;
  std::vector<std::vector<double>> double_shadows;
  std::vector<WeightType> types;

  void add(WeightType type, std::int64_t size, std::mt19937& random) {
    std::normal_distribution<double> normal;
    types.push_back(type);
    weights.push_back(random_weights(type, size, random));
    std::vector<double> start(static_cast<std::size_t>(size));
    for (double& value : start) value = normal(random);
    shadows.emplace_back(start.begin(), start.end());
    double_shadows.push_back(start);
  }

  std::vector<EmaTensor> table() {
    std::vector<EmaTensor> tensors;
    for (std::size_t t = 0; t < types.size(); ++t) {
      void* shadow = types[t] == WeightType::float64 ? static_cast<void*>(double_shadows[t].data())
                                                     : static_cast<void*>(shadows[t].data());
      const auto size = static_cast<std::int64_t>(shadows[t].size());
      tensors.push_back({shadow, weights[t].data(), size, types[t], nullptr});
    }
    return tensors;
  }
};

// The five-line loop.
template <typename Shadow>
void check_against_loop(const std::vector<Shadow>& before, const std::vector<Shadow>& after,
                        WeightType type, const std::vector<unsigned char>& weight, double decay) {
  for (std::size_t i = 0; i < before.size(); ++i) {
    const double target = read(type, weight, static_cast<std::int64_t>(i));
    const double exact = decay * before[i] + (1.0 - decay) * target;
    const double scale = std::fabs(target) + std::fabs(static_cast<double>(before[i]));
    const double tolerance = 2.0 * std::numeric_limits<Shadow>::epsilon() * scale;
    CHECK(std::fabs(after[i] - exact) <= tolerance, "element %zu of %zu, type %d, decay %g", i,
          before.size(), static_cast<int>(type), decay);
    if (failures > 10) return;
  }
}

Model every_type(const std::vector<std::int64_t>& sizes) {
  std::mt19937 random(7);
  Model model;
  for (int type = 0; type < 4; ++type) {
    for (std::int64_t size : sizes) model.add(static_cast<WeightType>(type), size, random);
  }
  return model;
}

// Made once: under a sanitizer, drawing the numbers takes longer than averaging them.
const Model of_awkward_sizes = every_type(awkward_sizes), of_small_sizes = every_type(small_sizes);

void every_type_matches_the_loop(double decay, const Model& before, ParallelFor parallel_for) {
  Model model = before;
  auto tensors = model.table();
  update(tensors, decay, parallel_for);
  for (std::size_t t = 0; t < tensors.size(); ++t) {
    const WeightType type = model.types[t];
    if (type == WeightType::float64) {
      check_against_loop(before.double_shadows[t], model.double_shadows[t], type, model.weights[t],
                         decay);
    } else {
      check_against_loop(before.shadows[t], model.shadows[t], type, model.weights[t], decay);
    }
  }
}

// Every type and size, averaged several times by each way in turn.
Model averaged(double decay, ParallelFor parallel_for, Isa isa) {
  Model model = of_awkward_sizes;
  const Isa before = ptrain::isa();
  use_isa(isa);
  for (int i = 0; i < 3; ++i) update(model.table(), decay, parallel_for);
  use_isa(before);
  return model;
}

void neither_threads_nor_instruction_sets_change_a_bit() {
  for (double decay : {0.25, 0.999}) {
    const Model one = averaged(decay, serial_for, Isa::baseline);
    for (ParallelFor parallel_for : {ParallelFor(serial_for), ParallelFor(threaded_for)}) {
      const Model other = averaged(decay, parallel_for, isa());
      CHECK(one.shadows == other.shadows && one.double_shadows == other.double_shadows, "%s, decay %g",
            name_of(isa()), decay);
    }
  }
}

// Views into one buffer, beginning at any element: the loops begin with what comes before a whole line.
void any_alignment_is_right() {
  for (std::int64_t shift = 0; shift < 20; ++shift) {
    std::vector<float> shadow(600, 1.0f), weight(600, 3.0f);
    update({{shadow.data() + shift, weight.data() + 2 * shift, 500, WeightType::float32, nullptr}}, 0.75);
    for (std::int64_t i = 0; i < 600; ++i) {
      const float want = i >= shift && i < shift + 500 ? 1.5f : 1.0f;
      CHECK(shadow[i] == want, "element %d, shift %d: %g", int(i), int(shift), shadow[i]);
    }
  }
}

// Each range of 64 elements is asked for by itself, in disorder: every element must be done once.
void in_small_pieces(std::int64_t count, std::int64_t /*grain*/, RangeTask task, void* context) {
  for (std::int64_t i = 1; i < count; i += 2) task(i, i + 1, context);
  for (std::int64_t i = 0; i < count; i += 2) task(i, i + 1, context);
}

void every_element_is_done_once_however_the_row_is_cut() {
  std::vector<std::vector<float>> shadows, weights;
  std::vector<EmaTensor> tensors;
  for (std::int64_t size = 0; size < 300; size += 7) {
    shadows.emplace_back(size, 0.0f);
    weights.emplace_back(size, 8.0f);
  }
  for (std::size_t t = 0; t < shadows.size(); ++t) {
    tensors.push_back({shadows[t].data(), weights[t].data(), static_cast<std::int64_t>(shadows[t].size()),
                       WeightType::float32, nullptr});
  }
  update(tensors, 0.75, in_small_pieces);
  for (const auto& shadow : shadows) {
    for (float value : shadow) CHECK(value == 2.0f, "%g in a tensor of %zu", value, shadow.size());
  }
}

// The row may be longer than 2^31, though no memory is that large here: sizes that are never walked stand
// before a tensor of 8 elements.
void last_range_only(std::int64_t count, std::int64_t /*grain*/, RangeTask task, void* context) {
  task(count - 1, count, context);
}

void indices_are_64_bit() {
  std::vector<float> shadow(8, 0.0f), weight(8, 8.0f);
  const EmaTensor huge{nullptr, nullptr, std::int64_t{1} << 40, WeightType::float32, nullptr};
  update({huge, {shadow.data(), weight.data(), 8, WeightType::float32, nullptr}}, 0.75, last_range_only);
  CHECK(shadow[0] == 2.0f && shadow[7] == 2.0f, "%g %g", shadow[0], shadow[7]);
}

void layouts_are_sorted_and_joined() {
  const auto flat = [](std::vector<std::int64_t> sizes, std::vector<std::int64_t> shadow,
                       std::vector<std::int64_t> weight) {
    return ema_layout(sizes.data(), shadow.data(), weight.data(), std::int64_t(sizes.size())).empty();
  };
  CHECK(flat({}, {}, {}), "a scalar");
  CHECK(flat({2, 3, 4}, {12, 4, 1}, {12, 4, 1}), "in order");
  CHECK(flat({2, 3, 4}, {1, 8, 2}, {1, 8, 2}), "permuted alike");
  CHECK(flat({2, 1, 4}, {4, 99, 1}, {4, 7, 1}), "the stride of a dimension of one element says nothing");
  CHECK(flat({2, 0, 4}, {0, 0, 0}, {5, 5, 5}), "empty");
  CHECK(!flat({2, 3}, {3, 1}, {1, 2}), "transposed");
  CHECK(!flat({4}, {2}, {2}), "with gaps");
  CHECK(!flat({4}, {1}, {0}), "expanded");
  const std::int64_t sizes[] = {4, 3, 2}, shadow[] = {6, 2, 1}, weight[] = {1, 8, 4};
  const EmaLayout joined = ema_layout(sizes, shadow, weight, 3);
  CHECK(joined.size() == 2 && joined[0].size == 4 && joined[1].size == 6 && joined[1].weight_stride == 4,
        "two dimensions become one: %zu", joined.size());
  CHECK(!overlaps_itself(joined), "a dense shadow");
  CHECK(overlaps_itself({{3, 0, 1}}) && overlaps_itself({{3, 2, 1}, {4, 1, 3}}), "shared elements");
  CHECK(!overlaps_itself({{3, 4, 1}, {4, 1, 3}}), "rows side by side");
}

// weight [5, 7, 3] in another order than its shadow, and expanded; every type, cut anywhere.
template <typename Shadow, typename Weight>
void strided_is_right(WeightType type, Shadow want, Weight given, const std::int64_t (&weight_strides)[3]) {
  const std::int64_t sizes[] = {5, 7, 3}, shadow_strides[] = {42, 6, 2};  // every second element
  const EmaLayout layout = ema_layout(sizes, shadow_strides, weight_strides, 3);
  std::vector<Shadow> shadow(210, Shadow(0));
  std::vector<Weight> weight(105, Weight(0));
  for (int a = 0; a < 5; ++a) {
    for (int b = 0; b < 7; ++b) {
      for (int c = 0; c < 3; ++c) {
        weight[a * weight_strides[0] + b * weight_strides[1] + c * weight_strides[2]] = given;
      }
    }
  }
  update({{shadow.data(), weight.data(), 105, type, &layout}}, 0.75, in_small_pieces);
  for (std::size_t i = 0; i < shadow.size(); ++i) {
    CHECK(shadow[i] == (i % 2 == 0 ? want : Shadow(0)), "type %d, element %zu", static_cast<int>(type), i);
  }
}

void any_strides_are_right() {
  const std::int64_t some_strides[][3] = {{1, 5, 35}, {3, 15, 1}, {0, 3, 1}};
  for (const auto& weight : some_strides) {
    strided_is_right<float, float>(WeightType::float32, 0.25f, 1.0f, weight);
    strided_is_right<float, std::uint16_t>(WeightType::bfloat16, 0.25f, 0x3f80u, weight);
    strided_is_right<float, std::uint16_t>(WeightType::float16, 0.25f, 0x3c00u, weight);
    strided_is_right<double, double>(WeightType::float64, 0.25, 1.0, weight);
    strided_is_right<std::uint8_t, std::uint8_t>(WeightType::copy8, 200, 200, weight);
    strided_is_right<std::uint16_t, std::uint16_t>(WeightType::copy16, 60000, 60000, weight);
    strided_is_right<std::uint32_t, std::uint32_t>(WeightType::copy32, 7, 7, weight);
    strided_is_right<std::int64_t, std::int64_t>(WeightType::copy64, -7, -7, weight);
  }
}

void what_is_copied_keeps_its_bits() {
  const std::vector<std::int64_t> from = {-1, INT64_MAX, 0, 3};
  for (int type = 4; type < 8; ++type) {
    std::vector<std::int64_t> to(4, 0);
    const std::int64_t bytes = std::int64_t{1} << (type - 4);
    update({{to.data(), from.data(), 32 / bytes, static_cast<WeightType>(type), nullptr}}, 0.999);
    CHECK(to == from, "type %d", type);
  }
}

void nan_and_infinity_propagate() {
  const float inf = std::numeric_limits<float>::infinity();
  // Twenty of each: in the vectors and in what is left over.
  for (std::int64_t size : {4, 80}) {
    std::vector<float> shadow(size), weight(size);
    for (std::int64_t i = 0; i < size; ++i) {
      shadow[i] = i % 4 < 2 ? 1.0f : i % 4 == 2 ? NAN : inf;
      weight[i] = i % 4 == 0 ? NAN : i % 4 == 1 ? inf : 1.0f;
    }
    update({{shadow.data(), weight.data(), size, WeightType::float32, nullptr}}, 0.999);
    for (std::int64_t i = 0; i < size; ++i) {
      // The last is inf + 0.001 * (1 - inf), which is NaN here and in torch's lerp.
      CHECK(i % 4 == 1 ? shadow[i] == inf : std::isnan(shadow[i]), "element %d: %g", int(i), shadow[i]);
    }
    for (WeightType type : {WeightType::float16, WeightType::bfloat16}) {
      const bool half = type == WeightType::float16;
      std::vector<float> half_shadow(size, 1.0f);
      std::vector<std::uint16_t> bits(size);
      for (std::int64_t i = 0; i < size; ++i) {
        bits[i] = i % 2 ? (half ? 0x7c00u : 0x7f80u) : (half ? 0x7e00u : 0x7fc0u);
      }
      update({{half_shadow.data(), bits.data(), size, type, nullptr}}, 0.999);
      for (std::int64_t i = 0; i < size; ++i) {
        CHECK(i % 2 ? half_shadow[i] == inf : std::isnan(half_shadow[i]), "element %d: %g", int(i),
              half_shadow[i]);
      }
    }
  }
}

void a_decay_of_zero_copies_and_of_one_keeps() {
  for (std::int64_t size : {2, 100}) {
    std::vector<float> shadow(size, 1e8f);
    const std::vector<float> weight(size, 1.25f);
    update({{shadow.data(), weight.data(), size, WeightType::float32, nullptr}}, 1.0);
    CHECK(shadow == std::vector<float>(size, 1e8f), "%g", shadow[0]);
    update({{shadow.data(), weight.data(), size, WeightType::float32, nullptr}}, 0.0);
    CHECK(shadow == weight, "%g", shadow[0]);
  }
}

void nothing_at_all_is_allowed() {
  update({}, 0.999);
  update({{nullptr, nullptr, 0, WeightType::bfloat16, nullptr}}, 0.999, threaded_for);
}

// All 65536 bit patterns, as the loops read them: a decay of 0 makes the shadow the weight.
void every_16_bit_pattern_is_averaged_right() {
  for (WeightType type : {WeightType::float16, WeightType::bfloat16}) {
    std::vector<std::uint16_t> bits(65536);
    std::vector<float> shadow(65536, 0.0f);
    for (std::size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<std::uint16_t>(i);
    update({{shadow.data(), bits.data(), 65536, type, nullptr}}, 0.0);
    for (std::size_t i = 0; i < bits.size(); ++i) {
      const float want = type == WeightType::float16 ? float_from_float16(bits[i])
                                                     : float_from_bfloat16(bits[i]);
      const bool finite = std::isfinite(want);
      CHECK(finite ? shadow[i] == want : std::isnan(shadow[i]), "0x%04zx: %g, not %g", i, shadow[i], want);
    }
  }
}

void the_probe_updates_every_element() {
  std::vector<float> x(100003, 2.0f), y(100003, 3.0f);
  probe_update(x.data(), y.data(), 100003, threaded_for);
  CHECK(x == std::vector<float>(100003, 4.0f), "%g", x[0]);
}

// All 65536 bit patterns of float16, against its definition.
void every_float16_is_read_right() {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
    const double sign = bits & 0x8000u ? -1.0 : 1.0;
    const float value = float_from_float16(static_cast<std::uint16_t>(bits));
    if (exponent == 31) {
      const bool right = fraction ? std::isnan(value)
                                  : value == sign * std::numeric_limits<double>::infinity();
      CHECK(right, "0x%04x is read as %g", bits, value);
      continue;
    }
    const double exact = exponent == 0 ? std::ldexp(fraction, -24)
                                       : std::ldexp(1024 + fraction, exponent - 25);
    CHECK(value == sign * exact && std::signbit(value) == (sign < 0), "0x%04x is read as %g", bits,
          value);
  }
}

}  // namespace

int main() {
  if (!threads_only) {
    every_float16_is_read_right();
    layouts_are_sorted_and_joined();
  }
  const Isa best = isa();
  for (Isa wanted : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    if (wanted > best) continue;
    if (threads_only && wanted == Isa::avx2) continue;
    use_isa(wanted);
    every_type_matches_the_loop(0.999, of_awkward_sizes, threaded_for);
    neither_threads_nor_instruction_sets_change_a_bit();
    nothing_at_all_is_allowed();
    the_probe_updates_every_element();
    if (!threads_only) {
      for (double decay : decays) every_type_matches_the_loop(decay, of_small_sizes, serial_for);
      any_alignment_is_right();
      every_element_is_done_once_however_the_row_is_cut();
      indices_are_64_bit();
      any_strides_are_right();
      what_is_copied_keeps_its_bits();
      nan_and_infinity_propagate();
      a_decay_of_zero_copies_and_of_one_keeps();
      every_16_bit_pattern_is_averaged_right();
    }
    if (failures != 0) {
      std::fprintf(stderr, "with %s\n", name_of(wanted));
      return 1;
    }
  }
  std::printf("test_ema: all checks passed, up to %s\n", name_of(best));
  return failures == 0 ? 0 : 1;
}
