// The CUDA kernels that update a model, run on the CPU by emulated_cuda.h, against the CPU's kernels.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "../core/ema.h"
#include "../core/norm.h"
#include "../core/step.h"
#include "../cuda/ema.cu"
#include "../cuda/norm.cu"
#include "../cuda/step.cu"
#include "../cuda/table.cu"
#include "check.h"

namespace gpu = ptrain::cuda;
using gpu::Type;

namespace {

constexpr Type all_types[] = {Type::float32, Type::bfloat16, Type::float16, Type::float64};
// Around a pack, around a block's turn, around a chunk of 4096, and none at all.
const std::vector<std::int64_t> sizes = {1, 3, 4, 5, 0, 255, 513, 4095, 4096, 4097, 0, 8197, 7};

std::int64_t value_bytes(Type type) { return type == Type::float64 ? 8 : type == Type::float32 ? 4 : 2; }
std::int64_t state_bytes(Type type) { return type == Type::float64 ? 8 : 4; }

std::mt19937 random_numbers(7);

void put(char* to, Type type, double value) {
  if (type == Type::float64) {
    std::memcpy(to, &value, 8);
  } else if (type == Type::float32) {
    const float x = static_cast<float>(value);
    std::memcpy(to, &x, 4);
  } else {
    const float x = static_cast<float>(value);
    const std::uint16_t bits =
        type == Type::bfloat16 ? gpu::Narrow<gpu::Bfloat16>::of(x).bits : gpu::half_bits_of_float(x);
    std::memcpy(to, &bits, 2);
  }
}

double get(const char* from, Type type) {
  double wide;
  float single;
  std::uint16_t bits;
  switch (type) {
    case Type::float64: std::memcpy(&wide, from, 8); return wide;
    case Type::float32: std::memcpy(&single, from, 4); return single;
    case Type::bfloat16: std::memcpy(&bits, from, 2); return gpu::widen(gpu::Bfloat16{bits});
    default: std::memcpy(&bits, from, 2); return gpu::widen(gpu::Float16{bits});
  }
}

// Elements of one tensor in memory of exactly their size, which begins `offset` bytes after a multiple of 16:
// the address sanitizer sees every access before or behind.
struct Memory {
  std::vector<char> bytes;
  std::size_t offset = 0;
  Type type = Type::float32;
  std::int64_t size = 0;

  Memory() = default;
  Memory(Type type_of_values, std::int64_t elements, std::size_t misalignment, double spread)
      : type(type_of_values), size(elements) {
    bytes.resize(static_cast<std::size_t>(elements * value_bytes(type)) + misalignment);
    offset = misalignment;
    std::normal_distribution<double> normal(0.0, spread);
    for (std::int64_t i = 0; i < size; ++i) put(at(i), type, normal(random_numbers));
  }
  char* at(std::int64_t i) { return bytes.data() + offset + i * value_bytes(type); }
  void* start() { return size == 0 ? nullptr : at(0); }
  double operator[](std::int64_t i) { return get(at(i), type); }
};

Type state_type(Type type) { return type == Type::float64 ? Type::float64 : Type::float32; }

// ---------------------------------------------------------------------------------------------- EMA
struct Average {
  Memory weight, shadow;
};

std::vector<Average> averages(bool aligned) {
  std::vector<Average> out;
  for (Type type : all_types) {
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      const std::size_t weight_off = aligned ? 0 : static_cast<std::size_t>(value_bytes(type)) * (i % 4);
      const std::size_t shadow_off = aligned ? 0 : static_cast<std::size_t>(state_bytes(type)) * (i / 2 % 3);
      out.push_back({Memory(type, sizes[i], weight_off, 1.0), Memory(state_type(type), sizes[i], shadow_off, 1.0)});
    }
  }
  return out;
}

void averages_move_as_on_the_cpu(double decay, bool aligned, bool from_device, std::int64_t chunk) {
  std::vector<Average> ours = averages(aligned), expected = ours;
  std::vector<gpu::EmaRow> rows;
  std::vector<ptrain::EmaTensor> tensors;
  for (std::size_t i = 0; i < ours.size(); ++i) {
    rows.push_back({ours[i].shadow.start(), ours[i].weight.start(), ours[i].weight.size, 0, ours[i].weight.type});
    tensors.push_back({expected[i].shadow.start(), expected[i].weight.start(), expected[i].weight.size,
                       static_cast<ptrain::WeightType>(expected[i].weight.type), nullptr});
  }
  const std::int64_t count = static_cast<std::int64_t>(rows.size());
  const std::int64_t chunks = gpu::number_chunks(rows.data(), count, chunk);
  std::vector<gpu::EmaRow> table(rows.size());
  gpu::write(table.data(), rows.data(), count * static_cast<std::int64_t>(sizeof(gpu::EmaRow)), nullptr);
  gpu::ema_update(table.data(), count, chunks, chunk, from_device ? -1.0 : decay, from_device ? &decay : nullptr,
                  nullptr);
  const auto starts = ptrain::ema_starts(tensors.data(), count);
  ptrain::ema_update(tensors.data(), starts.data(), count, decay);
  for (std::size_t i = 0; i < ours.size(); ++i) {
    CHECK(ours[i].shadow.bytes == expected[i].shadow.bytes, "pair %zu, decay %g", i, decay);
    CHECK(ours[i].weight.bytes == expected[i].weight.bytes, "pair %zu's weight", i);
  }
}

void what_is_no_float_is_copied() {
  for (std::size_t offset : {0, 8}) {
    std::vector<unsigned char> weight(20000 + offset), shadow(weight.size(), 0);
    for (unsigned char& byte : weight) byte = static_cast<unsigned char>(random_numbers());
    gpu::EmaRow row{shadow.data() + offset, weight.data() + offset, 19999, 0, Type::bytes};
    const std::int64_t chunks = gpu::number_chunks(&row, 1, 4096);
    gpu::ema_update(&row, 1, chunks, 4096, 0.999, nullptr, nullptr);
    CHECK(std::equal(weight.begin() + static_cast<std::ptrdiff_t>(offset), weight.end() - 1,
                     shadow.begin() + static_cast<std::ptrdiff_t>(offset)) && shadow.back() == 0,
          "offset %zu", offset);
  }
}

// ---------------------------------------------------------------------------------------------- norm
double norm_of(std::vector<Memory>& tensors, std::int64_t chunk) {
  std::vector<gpu::NormRow> rows;
  for (Memory& tensor : tensors) rows.push_back({tensor.start(), tensor.size, 0, tensor.type, 0});
  const std::int64_t count = static_cast<std::int64_t>(rows.size());
  const std::int64_t chunks = gpu::number_chunks(rows.data(), count, chunk);
  std::vector<double> partials(static_cast<std::size_t>(chunks), NAN);
  double norm = NAN;
  gpu::norm(rows.data(), count, chunks, chunk, partials.data(), &norm, nullptr);
  return norm;
}

void norms_are_exact_and_know_nothing_of_alignment() {
  std::vector<Memory> tensors;
  for (Type type : all_types) {
    for (std::int64_t size : sizes) tensors.emplace_back(type, size, 0, 1.0);
  }
  double expected = 0.0;
  for (Memory& tensor : tensors) {
    for (std::int64_t i = 0; i < tensor.size; ++i) expected += tensor[i] * tensor[i];
  }
  expected = std::sqrt(expected);
  const double norm = norm_of(tensors, 4096);
  CHECK(std::fabs(norm - expected) <= 1e-14 * expected, "%.17g, not %.17g", norm, expected);
  for (Memory& tensor : tensors) {
    const std::size_t shift = static_cast<std::size_t>(value_bytes(tensor.type));
    tensor.bytes.insert(tensor.bytes.begin(), shift, 0);
    tensor.offset += shift;
  }
  gpu::blocks_backwards() = true;
  CHECK(norm_of(tensors, 4096) == norm, "other bits where the tensors are not aligned");
  gpu::blocks_backwards() = false;
  put(tensors[3].at(2), tensors[3].type, INFINITY);
  CHECK(std::isinf(norm_of(tensors, 4096)), "an infinite element");
  put(tensors[3].at(2), tensors[3].type, NAN);
  CHECK(std::isnan(norm_of(tensors, 4096)), "a NaN");
  tensors.clear();
  CHECK(norm_of(tensors, 4096) == 0.0, "nothing at all");
}

// ---------------------------------------------------------------------------------------------- step
struct Stepped {
  Memory weight, gradient, exp_avg, exp_avg_sq, shadow;
  bool has_gradient = true, has_shadow = true;
  float step = 0.0f;
  std::int32_t group = 0;
};

std::vector<Stepped> stepped(bool aligned) {
  std::vector<Stepped> out;
  for (Type type : all_types) {
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      const std::size_t off = aligned ? 0 : static_cast<std::size_t>(value_bytes(type)) * (i % 3);
      const std::size_t state_off = aligned ? 0 : static_cast<std::size_t>(state_bytes(type)) * (i % 2);
      Stepped one{Memory(type, sizes[i], off, 0.1),
                  Memory(type, sizes[i], off, 1.0),
                  Memory(state_type(type), sizes[i], state_off, 0.1),
                  Memory(state_type(type), sizes[i], 0, 0.1),
                  Memory(state_type(type), sizes[i], state_off, 0.1)};
      for (std::int64_t k = 0; k < sizes[i]; ++k) {
        put(one.exp_avg_sq.at(k), one.exp_avg_sq.type, std::fabs(one.exp_avg_sq[k]) + 1e-4);
      }
      one.has_gradient = i % 5 != 3;
      one.has_shadow = i % 4 != 2;
      one.step = static_cast<float>(i % 3);
      one.group = static_cast<std::int32_t>(i % 2);
      out.push_back(std::move(one));
    }
  }
  return out;
}

const std::vector<double> hyper = {1e-3, 0.9, 0.999, 1e-8, 0.01, 0.999, 3e-2, 0.3, 0.98, 1e-6, 0.0, 0.2};

void run_on_gpu(std::vector<Stepped>& tensors, const double* norm, double max_norm, bool zero, std::int64_t chunk) {
  std::vector<gpu::StepRow> rows;
  for (Stepped& one : tensors) {
    rows.push_back({one.weight.start(), one.has_gradient ? one.gradient.start() : nullptr, one.exp_avg.start(),
                    one.exp_avg_sq.start(), one.has_shadow ? one.shadow.start() : nullptr, &one.step, one.weight.size,
                    0, one.group, one.weight.type, {}});
  }
  const std::int64_t count = static_cast<std::int64_t>(rows.size());
  const std::int64_t chunks = gpu::number_chunks(rows.data(), count, chunk);
  std::vector<gpu::StepScalars> scalars(rows.size());
  gpu::step(rows.data(), count, chunks, chunk, {true, true}, hyper.data(), norm, max_norm, zero, scalars.data(),
            nullptr);
}

void run_on_cpu(std::vector<Stepped>& tensors, double clip, bool zero) {
  std::vector<ptrain::StepTensor> rows;
  for (Stepped& one : tensors) {
    rows.push_back({one.weight.start(), one.has_gradient ? one.gradient.start() : nullptr, one.exp_avg.start(),
                    one.exp_avg_sq.start(), &one.step, one.has_shadow ? one.shadow.start() : nullptr, one.weight.size,
                    static_cast<ptrain::FloatType>(one.weight.type), one.group});
  }
  std::vector<ptrain::StepGroup> groups;
  for (std::size_t g = 0; g < hyper.size(); g += 6) {
    groups.push_back({hyper[g], hyper[g + 1], hyper[g + 2], hyper[g + 3], hyper[g + 4], hyper[g + 5]});
  }
  ptrain::fused_step(rows.data(), static_cast<std::int64_t>(rows.size()), groups.data(), clip, zero);
}

// The two kernels fuse products and sums differently. A weight that is rounded another way for it shows in its
// average too, so that has the weight's precision.
void check_close(Memory& ours, Memory& expected, Type precision, const char* what, std::size_t tensor) {
  const double last_place = precision == Type::float64    ? 1e-14
                            : precision == Type::float32  ? 1e-6
                            : precision == Type::bfloat16 ? 1e-2
                                                          : 2e-3;
  for (std::int64_t i = 0; i < ours.size; ++i) {
    const double error = std::fabs(ours[i] - expected[i]);
    if (error <= last_place * (std::fabs(expected[i]) + 0.03)) continue;
    CHECK(false, "tensor %zu: %s[%lld] is %.9g, not %.9g", tensor, what, static_cast<long long>(i), ours[i],
          expected[i]);
    return;
  }
}

void steps_are_those_of_the_cpu(bool aligned, double norm, double max_norm, bool zero, std::int64_t chunk) {
  std::vector<Stepped> ours = stepped(aligned), expected = ours, before = ours;
  run_on_gpu(ours, std::isnan(norm) ? nullptr : &norm, max_norm, zero, chunk);
  run_on_cpu(expected, std::isnan(norm) ? 1.0 : ptrain::clip_factor(norm, max_norm), zero);
  for (std::size_t i = 0; i < ours.size(); ++i) {
    check_close(ours[i].weight, expected[i].weight, ours[i].weight.type, "weight", i);
    check_close(ours[i].gradient, expected[i].gradient, ours[i].weight.type, "gradient", i);
    check_close(ours[i].exp_avg, expected[i].exp_avg, ours[i].exp_avg.type, "exp_avg", i);
    check_close(ours[i].exp_avg_sq, expected[i].exp_avg_sq, ours[i].exp_avg_sq.type, "exp_avg_sq", i);
    check_close(ours[i].shadow, expected[i].shadow, ours[i].weight.type, "shadow", i);
    CHECK(ours[i].step == expected[i].step, "tensor %zu counts %g", i, ours[i].step);
    CHECK(ours[i].has_gradient || ours[i].weight.bytes == before[i].weight.bytes, "tensor %zu has no gradient", i);
  }
}

void a_norm_that_is_not_finite_touches_nothing(double norm, bool zero) {
  std::vector<Stepped> ours = stepped(true), before = ours;
  run_on_gpu(ours, &norm, 1.0, zero, 4096);
  for (std::size_t i = 0; i < ours.size(); ++i) {
    for (std::int64_t k = 0; k < ours[i].gradient.size; ++k) {
      const double left = zero && ours[i].has_gradient ? 0.0 : before[i].gradient[k];
      CHECK(ours[i].gradient[k] == left, "gradient %zu[%lld]", i, static_cast<long long>(k));
    }
    CHECK(ours[i].weight.bytes == before[i].weight.bytes && ours[i].exp_avg.bytes == before[i].exp_avg.bytes &&
              ours[i].exp_avg_sq.bytes == before[i].exp_avg_sq.bytes &&
              ours[i].shadow.bytes == before[i].shadow.bytes && ours[i].step == before[i].step,
          "tensor %zu, norm %g", i, norm);
  }
}

// ---------------------------------------------------------------------------------------------- tables
void tables_of_any_size_arrive() {
  for (std::int64_t words : {0, 1, 250, 251, 2000, 2001, 4100}) {
    std::vector<std::uint64_t> host(static_cast<std::size_t>(2 * words)), device(host.size(), 0);
    for (std::size_t i = 0; i < host.size(); ++i) host[i] = i + 1;
    gpu::write(device.data(), host.data(), 16 * words, nullptr);
    CHECK(device == host, "%lld words", static_cast<long long>(words));
  }
}

// Thousands of rows: the search takes three turns.
void chunks_find_their_rows() {
  for (std::int64_t count : {1, 2, 31, 32, 33, 1023, 1025, 2500}) {
    std::vector<float> weights(static_cast<std::size_t>(count)), shadows(weights.size(), 0.0f);
    std::vector<gpu::EmaRow> rows;
    for (std::size_t i = 0; i < weights.size(); ++i) {
      weights[i] = static_cast<float>(i + 1);
      rows.push_back({&shadows[i], &weights[i], i % 3 != 1, 0, Type::float32});
    }
    const std::int64_t chunks = gpu::number_chunks(rows.data(), count, 4096);
    gpu::ema_update(rows.data(), count, chunks, 4096, 0.0, nullptr, nullptr);
    for (std::size_t i = 0; i < weights.size(); ++i) {
      CHECK(shadows[i] == (i % 3 != 1 ? weights[i] : 0.0f), "row %zu of %lld", i, static_cast<long long>(count));
    }
  }
}

// Every float16 back and forth, and halves between two bfloat16.
void narrow_numbers_round_to_even() {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float as_bfloat16 = gpu::widen(gpu::Bfloat16{half});
    if (as_bfloat16 == as_bfloat16) {
      CHECK(gpu::Narrow<gpu::Bfloat16>::of(as_bfloat16).bits == half, "bfloat16 0x%04x", bits);
    } else {
      CHECK(std::isnan(gpu::widen(gpu::Narrow<gpu::Bfloat16>::of(as_bfloat16))), "bfloat16 0x%04x", bits);
    }
  }
  CHECK(gpu::Narrow<gpu::Bfloat16>::of(1.0f + 0x1p-8f).bits == 0x3f80, "a half goes down to even");
  CHECK(gpu::Narrow<gpu::Bfloat16>::of(1.0f + 0x3p-8f).bits == 0x3f82, "a half goes up to even");
  CHECK(gpu::Narrow<gpu::Bfloat16>::of(3.4e38f).bits == 0x7f80, "what is too large is infinite");
}

}  // namespace

int main() {
  tables_of_any_size_arrive();
  chunks_find_their_rows();
  narrow_numbers_round_to_even();
  for (double decay : {0.0, 0.5, 0.999}) averages_move_as_on_the_cpu(decay, decay != 0.5, false, 4096);
  averages_move_as_on_the_cpu(0.999, false, true, 16384);
  what_is_no_float_is_copied();
  norms_are_exact_and_know_nothing_of_alignment();
  steps_are_those_of_the_cpu(true, 5.0, 1.0, false, 4096);
  steps_are_those_of_the_cpu(false, 0.5, 1.0, true, 16384);
  steps_are_those_of_the_cpu(true, NAN, 1.0, true, 16384);
  a_norm_that_is_not_finite_touches_nothing(INFINITY, false);
  a_norm_that_is_not_finite_touches_nothing(NAN, true);
  if (failures == 0) std::puts("test_cuda_update: all checks passed");
  return failures == 0 ? 0 : 1;
}
