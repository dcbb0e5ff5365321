// The moving average against a loop of five lines, for every dtype, awkward sizes and threads.
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
#include "../core/numeric.h"
#include "check.h"

using namespace ptrain;

namespace {

const std::vector<std::int64_t> small_sizes = {0, 1, 63, 64, 65, 0, 16384, 16385};
const std::vector<std::int64_t> awkward_sizes = {0, 1, 63, 64, 65, 1000003, 0, 16384, 16385};

// Three threads take the ranges in turn, so that neighbouring chunks run at the same time.
void threaded_for(std::int64_t count, std::int64_t grain, RangeTask task, void* context) {
  std::vector<std::thread> threads;
  for (int worker = 0; worker < 3; ++worker) {
    threads.emplace_back([=] {
      for (std::int64_t begin = worker * grain; begin < count; begin += 3 * grain) {
        task(begin, std::min(begin + grain, count), context);
      }
    });
  }
  for (auto& thread : threads) thread.join();
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
      tensors.push_back({shadow, weights[t].data(), size, types[t]});
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

void every_type_matches_the_loop(double decay, const std::vector<std::int64_t>& sizes,
                                 ParallelFor parallel_for) {
  std::mt19937 random(7);
  Model model;
  for (int type = 0; type < 4; ++type) {
    for (std::int64_t size : sizes) model.add(static_cast<WeightType>(type), size, random);
  }
  const Model before = model;
  auto tensors = model.table();
  ema_update(tensors.data(), static_cast<std::int64_t>(tensors.size()), decay, parallel_for);
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

void threads_change_no_bit() {
  std::mt19937 random(8);
  Model serial;
  for (std::int64_t size : awkward_sizes) serial.add(WeightType::float32, size, random);
  Model threaded = serial;
  auto one = serial.table(), many = threaded.table();
  ema_update(one.data(), static_cast<std::int64_t>(one.size()), 0.999);
  ema_update(many.data(), static_cast<std::int64_t>(many.size()), 0.999, threaded_for);
  CHECK(serial.shadows == threaded.shadows, "float32");
}

void nan_and_infinity_propagate() {
  const float inf = std::numeric_limits<float>::infinity();
  float shadow[4] = {1.0f, 1.0f, NAN, inf};
  const float weight[4] = {NAN, inf, 1.0f, 1.0f};
  const EmaTensor tensor{shadow, weight, 4, WeightType::float32};
  ema_update(&tensor, 1, 0.999);
  // The last is inf + 0.001 * (1 - inf), which is NaN here and in torch's lerp.
  CHECK(std::isnan(shadow[0]) && shadow[1] == inf && std::isnan(shadow[2]) && std::isnan(shadow[3]),
        "%g %g %g %g", shadow[0], shadow[1], shadow[2], shadow[3]);

  float half_shadow[2] = {1.0f, 1.0f};
  const std::uint16_t half[2] = {0x7e00u, 0x7c00u};
  const EmaTensor half_tensor{half_shadow, half, 2, WeightType::float16};
  ema_update(&half_tensor, 1, 0.999);
  CHECK(std::isnan(half_shadow[0]) && half_shadow[1] == inf, "%g %g", half_shadow[0],
        half_shadow[1]);
}

void a_decay_of_zero_copies_and_of_one_keeps() {
  float shadow[2] = {1e8f, 3.0f};
  const float weight[2] = {1.25f, -7.5f};
  const EmaTensor tensor{shadow, weight, 2, WeightType::float32};
  ema_update(&tensor, 1, 1.0);
  CHECK(shadow[0] == 1e8f && shadow[1] == 3.0f, "%g %g", shadow[0], shadow[1]);
  ema_update(&tensor, 1, 0.0);
  CHECK(shadow[0] == 1.25f && shadow[1] == -7.5f, "%g %g", shadow[0], shadow[1]);
}

void nothing_at_all_is_allowed() {
  ema_update(nullptr, 0, 0.999);
  const EmaTensor empty{nullptr, nullptr, 0, WeightType::bfloat16};
  ema_update(&empty, 1, 0.999, threaded_for);
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
  for (double decay : {0.0, 0.1, 0.5, 1.0}) {
    every_type_matches_the_loop(decay, small_sizes, serial_for);
  }
  every_type_matches_the_loop(0.999, awkward_sizes, serial_for);
  every_type_matches_the_loop(0.999, small_sizes, threaded_for);
  threads_change_no_bit();
  nan_and_infinity_propagate();
  a_decay_of_zero_copies_and_of_one_keeps();
  nothing_at_all_is_allowed();
  every_float16_is_read_right();
  if (failures == 0) std::puts("test_ema: all checks passed");
  return failures == 0 ? 0 : 1;
}
