// The step against its formulas in double, for every type, awkward sizes, threads and instruction sets.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "../core/isa.h"
#include "../core/step.h"
#include "check.h"
#include "threads.h"

using namespace ptrain;

namespace {

const std::vector<std::int64_t> sizes = {0, 1, 63, 64, 65, 0, 1000, 16385, 70001};
const StepGroup groups[2] = {{1e-2, 0.9, 0.999, 1e-8, 0.1, 0.99}, {3e-3, 0.0, 0.9, 1e-6, 0.0, 0.2}};

// A number of any type, in memory.
double read(FloatType type, const std::vector<unsigned char>& bytes, std::int64_t i) {
  std::uint16_t half;
  float single;
  double full;
  switch (type) {
    case FloatType::float32: std::memcpy(&single, &bytes[4 * i], 4); return single;
    case FloatType::float64: std::memcpy(&full, &bytes[8 * i], 8); return full;
    default:
      std::memcpy(&half, &bytes[2 * i], 2);
      return type == FloatType::bfloat16 ? float_from_bfloat16(half) : float_from_float16(half);
  }
}

void write(FloatType type, std::vector<unsigned char>& bytes, std::int64_t i, double value) {
  const float single = static_cast<float>(value);
  std::uint16_t half;
  switch (type) {
    case FloatType::float32: std::memcpy(&bytes[4 * i], &single, 4); return;
    case FloatType::float64: std::memcpy(&bytes[8 * i], &value, 8); return;
    default:
      half = type == FloatType::bfloat16 ? bfloat16_from_float(single) : float16_from_float(single);
      std::memcpy(&bytes[2 * i], &half, 2);
  }
}

struct Part {
  FloatType type;
  std::vector<unsigned char> bytes;

  double operator[](std::int64_t i) const { return read(type, bytes, i); }
};

struct Tensor {
  std::int64_t size;
  Part weight, gradient, exp_avg, exp_avg_sq, shadow;
  float step;
  std::int32_t group;
  bool has_gradient, has_shadow;
};

struct Model {
  std::vector<Tensor> tensors;

  void add(FloatType type, std::int64_t size, std::mt19937& random) {
    std::normal_distribution<double> normal;
    const FloatType state = type == FloatType::float64 ? type : FloatType::float32;
    const auto part = [&](FloatType kind, double scale, bool squared) {
      Part made{kind, std::vector<unsigned char>(static_cast<std::size_t>(size * bytes_of(kind)))};
      for (std::int64_t i = 0; i < size; ++i) {
        const double value = scale * normal(random);
        write(kind, made.bytes, i, squared ? value * value : value);
      }
      return made;
    };
    const int n = static_cast<int>(tensors.size());
    tensors.push_back({size, part(type, 1.0, false), part(type, 0.1, false), part(state, 0.01, false),
                       part(state, 0.1, true), part(state, 1.0, false), 7.0f + static_cast<float>(n % 3 == 0),
                       n % 2, n % 7 != 3, n % 5 != 4});
  }

  std::vector<StepTensor> table() {
    std::vector<StepTensor> rows;
    for (Tensor& t : tensors) {
      void* const gradient = t.size == 0 ? static_cast<void*>(&t.step) : t.gradient.bytes.data();
      rows.push_back({t.weight.bytes.data(), t.has_gradient ? gradient : nullptr,
                      t.exp_avg.bytes.data(), t.exp_avg_sq.bytes.data(), &t.step,
                      t.has_shadow ? t.shadow.bytes.data() : nullptr, t.size, t.weight.type, t.group});
    }
    return rows;
  }

  void step(double clip, bool zero, ParallelFor parallel_for) {
    const auto rows = table();
    fused_step(rows.data(), static_cast<std::int64_t>(rows.size()), groups, clip, zero, parallel_for);
  }
};

double epsilon(FloatType type) {
  switch (type) {
    case FloatType::float64: return 2.2e-16;
    case FloatType::float32: return 1.2e-7;
    case FloatType::bfloat16: return 7.8e-3;
    default: return 9.8e-4;
  }
}

void expect(const char* what, const Tensor& after, std::int64_t i, double got, double want, double tolerance) {
  if (failures > 10) return;
  CHECK(std::fabs(got - want) <= tolerance * (1.0 + std::fabs(want)), "%s %d of %d, type %d, %s: %.9g, not %.9g",
        what, static_cast<int>(i), static_cast<int>(after.size), static_cast<int>(after.weight.type),
        name_of(isa()), got, want);
}

void compare(const Tensor& before, const Tensor& after, double clip, bool zero) {
  const StepGroup& group = groups[before.group];
  const double t = before.step + 1.0;
  const double few = 16 * epsilon(before.exp_avg.type);
  const double stored = std::fmax(few, 0.51 * epsilon(before.weight.type));
  CHECK(after.step == before.step + (before.has_gradient ? 1.0f : 0.0f), "counted to %g", after.step);
  for (std::int64_t i = 0; i < before.size; ++i) {
    double weight = before.weight[i];
    if (before.has_gradient) {
      const double g = clip * before.gradient[i];
      const double m = group.beta1 * before.exp_avg[i] + (1 - group.beta1) * g;
      const double v = group.beta2 * before.exp_avg_sq[i] + (1 - group.beta2) * g * g;
      weight *= 1 - group.learning_rate * group.weight_decay;
      weight -= group.learning_rate / (1 - std::pow(group.beta1, t)) * m /
                (std::sqrt(v / (1 - std::pow(group.beta2, t))) + group.eps);
      expect("exp_avg", after, i, after.exp_avg[i], m, few);
      expect("exp_avg_sq", after, i, after.exp_avg_sq[i], v, few);
      if (zero) expect("gradient", after, i, after.gradient[i], 0.0, 0.0);
    }
    expect("weight", after, i, after.weight[i], weight, before.has_gradient ? stored : 0.0);
    const double average = group.average_decay * before.shadow[i] + (1 - group.average_decay) * after.weight[i];
    expect("shadow", after, i, after.shadow[i], before.has_shadow ? average : before.shadow[i],
           before.has_shadow ? few : 0.0);
  }
  if (!zero) CHECK(before.gradient.bytes == after.gradient.bytes, "the gradient was written");
}

bool same(const Model& one, const Model& other) {
  for (std::size_t t = 0; t < one.tensors.size(); ++t) {
    const Tensor &a = one.tensors[t], &b = other.tensors[t];
    if (a.weight.bytes != b.weight.bytes || a.exp_avg.bytes != b.exp_avg.bytes || a.step != b.step ||
        a.exp_avg_sq.bytes != b.exp_avg_sq.bytes || a.shadow.bytes != b.shadow.bytes ||
        a.gradient.bytes != b.gradient.bytes) {
      return false;
    }
  }
  return true;
}

void every_type_is_the_formula(double clip, bool zero) {
  std::mt19937 random(5);
  Model before;
  for (FloatType type : {FloatType::float32, FloatType::bfloat16, FloatType::float16, FloatType::float64}) {
    for (std::int64_t size : sizes) before.add(type, size, random);
  }
  Model after = before, threaded = before;
  threaded.step(clip, zero, threaded_for);
  if (threads_only) return;
  after.step(clip, zero, serial_for);
  CHECK(same(after, threaded), "threads changed a bit, %s", name_of(isa()));
  for (std::size_t t = 0; t < before.tensors.size(); ++t) {
    compare(before.tensors[t], after.tensors[t], clip, zero);
  }
}

void the_clip_factor() {
  CHECK(clip_factor(2.0, 0.0) == 1.0, "no clipping");
  CHECK(clip_factor(0.5, 1.0) == 1.0, "small enough");
  CHECK(std::fabs(clip_factor(2.0, 1.0) - 1.0 / (2.0 + 1e-6)) < 1e-15, "too large");
}

void nothing_at_all_is_allowed() { fused_step(nullptr, 0, groups, 1.0, true, threaded_for); }

// Every float that lies between two 16-bit numbers, or on one: all neighbours of each, and the halves.
void rounding_to_16_bits() {
  for (std::uint32_t bits = 0; bits < 0x7c00u; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float low = float_from_float16(half);
    const float high = bits == 0x7bffu ? 65536.0f : float_from_float16(static_cast<std::uint16_t>(bits + 1));
    const float middle = 0.5f * (low + high);
    const std::uint32_t even = bits % 2 == 0 ? bits : bits + 1;
    CHECK(float16_from_float(low) == bits, "0x%04x", bits);
    CHECK(float16_from_float(middle) == even, "the middle above 0x%04x", bits);
    CHECK(float16_from_float(std::nextafterf(middle, 0.0f)) == bits, "below the middle, 0x%04x", bits);
    CHECK(float16_from_float(std::nextafterf(middle, 1e9f)) == bits + 1, "above the middle, 0x%04x", bits);
    CHECK(float16_from_float(-low) == (bits | 0x8000u), "-0x%04x", bits);
  }
  CHECK(float16_from_float(INFINITY) == 0x7c00u && float16_from_float(1e30f) == 0x7c00u, "infinity");
  CHECK(std::isnan(float_from_float16(float16_from_float(NAN))), "NaN");
  for (std::uint32_t bits = 0; bits < 0x7f80u; ++bits) {
    const float low = float_from_bits(bits << 16), middle = float_from_bits(bits << 16 | 0x8000u);
    CHECK(bfloat16_from_float(low) == bits, "0x%04x", bits);
    CHECK(bfloat16_from_float(middle) == bits + bits % 2, "the middle above 0x%04x", bits);
    CHECK(bfloat16_from_float(float_from_bits(bits << 16 | 0x8001u)) == bits + 1, "above 0x%04x", bits);
  }
  CHECK(std::isnan(float_from_bfloat16(bfloat16_from_float(NAN))), "NaN");
  CHECK(std::isnan(float_from_bfloat16(bfloat16_from_float(float_from_bits(0x7f800001u)))), "NaN");
}

}  // namespace

int main() {
  for (Isa wanted : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    if (threads_only && wanted == Isa::avx2) continue;
    use_isa(wanted);
    every_type_is_the_formula(1.0, false);
    every_type_is_the_formula(0.3, true);
  }
  the_clip_factor();
  nothing_at_all_is_allowed();
  if (!threads_only) rounding_to_16_bits();
  if (failures == 0) std::puts("test_step: all checks passed");
  return failures == 0 ? 0 : 1;
}
