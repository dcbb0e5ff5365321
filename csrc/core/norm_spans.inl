// The running sums of squares of one stretch of memory: see norm.cpp.

// Eight at a time: one register of AVX-512, two of AVX2, four of the baseline.
typedef double Doubles __attribute__((vector_size(64)));

// Element i goes to running sum i % 32. The product of two widened floats is exact in double (48 bits of
// 53), so a fused multiply-add rounds as a multiplication and an addition do.
template <typename Value>
void add_squares(const void* data, std::int64_t size, double* sums) {
  const Value* value = static_cast<const Value*>(data);
  Doubles running[4];
  std::memcpy(running, sums, sizeof running);
  const std::int64_t whole = size / 32 * 32;
  for (std::int64_t i = 0; i < whole; i += 32) {
    Doubles wide[4];
    for (int k = 0; k < 4; ++k) {
      for (int j = 0; j < 8; ++j) wide[k][j] = widen(value[i + 8 * k + j]);
    }
    for (int k = 0; k < 4; ++k) running[k] += wide[k] * wide[k];
  }
  std::memcpy(sums, running, sizeof running);
  for (std::int64_t i = whole; i < size; ++i) {
    const double wide = widen(value[i]);
    sums[i - whole] += wide * wide;
  }
}

// The square of a double is rounded: it must be, on every instruction set, before it is added.
#if !defined(__clang__)
__attribute__((optimize("fp-contract=off")))
#endif
void add_squares_of_doubles(const void* data, std::int64_t size, double* sums) {
#if defined(__clang__)
#pragma clang fp contract(off)
#endif
  const double* value = static_cast<const double*>(data);
  Doubles running[4];
  std::memcpy(running, sums, sizeof running);
  const std::int64_t whole = size / 32 * 32;
  for (std::int64_t i = 0; i < whole; i += 32) {
    Doubles wide[4];
    std::memcpy(wide, value + i, sizeof wide);
    for (int k = 0; k < 4; ++k) running[k] = running[k] + wide[k] * wide[k];
  }
  std::memcpy(sums, running, sizeof running);
  for (std::int64_t i = whole; i < size; ++i) sums[i - whole] += value[i] * value[i];
}

constexpr AddSquares norm_table[4] = {  // indexed by FloatType
    add_squares<float>,
    add_squares<StoredBfloat16>,
    add_squares<StoredFloat16>,
    add_squares_of_doubles,
};
