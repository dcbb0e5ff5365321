// The norm against long double, and the same bits from any number of threads and any instruction set.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "../core/isa.h"
#include "../core/norm.h"
#include "check.h"
#include "threads.h"

using namespace ptrain;

namespace {

const std::vector<std::int64_t> sizes = {0, 1, 31, 32, 33, 255, 0, 16384, 16385, 100003};

struct Gradients {
  std::vector<std::vector<unsigned char>> bytes;
  std::vector<NormTensor> tensors;
  long double exact = 0.0L;

  void add(FloatType type, std::int64_t size, std::mt19937& random) {
    std::normal_distribution<double> normal;
    std::vector<unsigned char> memory(static_cast<std::size_t>(size * bytes_of(type)));
    for (std::int64_t i = 0; i < size; ++i) {
      double value = normal(random);
      if (type == FloatType::float64) {
        std::memcpy(&memory[8 * i], &value, 8);
      } else if (type == FloatType::float32) {
        const float single = static_cast<float>(value);
        std::memcpy(&memory[4 * i], &single, 4);
        value = single;
      } else {
        const float single = static_cast<float>(value);
        const bool brain = type == FloatType::bfloat16;
        const std::uint16_t half = brain ? bfloat16_from_float(single) : float16_from_float(single);
        std::memcpy(&memory[2 * i], &half, 2);
        value = brain ? float_from_bfloat16(half) : float_from_float16(half);
      }
      exact += static_cast<long double>(value) * value;
    }
    bytes.push_back(std::move(memory));
    tensors.push_back({bytes.back().data(), size, type});
  }
};

double norm_of(const Gradients& gradients, ParallelFor parallel_for = serial_for) {
  return sum_of_squares(gradients.tensors.data(),
                        static_cast<std::int64_t>(gradients.tensors.size()), parallel_for);
}

void every_type_is_exact_and_always_the_same(Gradients& gradients, const char* name) {
  double first = 0.0;
  for (Isa wanted : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    use_isa(wanted);
    const double serial = norm_of(gradients), threaded = norm_of(gradients, threaded_for);
    CHECK(serial == threaded, "%s, %s: %.17g %.17g", name, name_of(isa()), serial, threaded);
    if (wanted == Isa::baseline) first = serial;
    CHECK(serial == first, "%s, %s: %.17g, baseline %.17g", name, name_of(isa()), serial, first);
    const double error = std::fabs(static_cast<double>(serial / gradients.exact - 1.0L));
    CHECK(error < 1e-13, "%s, %s: relative error %g", name, name_of(isa()), error);
  }
}

void what_is_not_finite_comes_through() {
  const float inf = std::numeric_limits<float>::infinity();
  for (std::int64_t place : {0, 31, 64, 69}) {
    for (float bad : {inf, -inf, std::nanf("")}) {
      std::vector<float> values(70, 1.0f);
      values[place] = bad;
      const NormTensor tensor{values.data(), 70, FloatType::float32};
      CHECK(!std::isfinite(sum_of_squares(&tensor, 1)), "%g at %d", bad, static_cast<int>(place));
    }
  }
}

void nothing_is_zero() {
  CHECK(sum_of_squares(nullptr, 0) == 0.0, "no tensors");
  const NormTensor empty{nullptr, 0, FloatType::float32};
  CHECK(sum_of_squares(&empty, 1, threaded_for) == 0.0, "an empty one");
}

}  // namespace

int main() {
  std::mt19937 random(3);
  Gradients all;
  for (FloatType type : {FloatType::float32, FloatType::bfloat16, FloatType::float16, FloatType::float64}) {
    Gradients one;
    for (std::int64_t size : sizes) one.add(type, size, random), all.add(type, size, random);
    every_type_is_exact_and_always_the_same(one, "one type");
  }
  every_type_is_exact_and_always_the_same(all, "all types");
  what_is_not_finite_comes_through();
  nothing_is_zero();
  if (failures == 0) std::puts("test_norm: all checks passed");
  return failures == 0 ? 0 : 1;
}
