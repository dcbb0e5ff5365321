// Vectors as wide as the instruction set's registers, and exp and log of them.
//
// Included once in each of the namespaces of each_isa.h by the loops that want it. `Floats` and `Doubles`
// are GCC vector types; a `Row16` is sixteen doubles, as several of them.

typedef float Floats __attribute__((vector_size(PTRAIN_VECTOR_BYTES)));
typedef std::int32_t FloatBits __attribute__((vector_size(PTRAIN_VECTOR_BYTES)));
typedef std::uint32_t FloatWords __attribute__((vector_size(PTRAIN_VECTOR_BYTES)));  // these wrap around
typedef double Doubles __attribute__((vector_size(PTRAIN_VECTOR_BYTES)));
typedef std::int64_t DoubleBits __attribute__((vector_size(PTRAIN_VECTOR_BYTES)));
typedef std::uint64_t DoubleWords __attribute__((vector_size(PTRAIN_VECTOR_BYTES)));
typedef float HalfFloats __attribute__((vector_size(PTRAIN_VECTOR_BYTES / 2)));  // one to each double
typedef std::uint16_t HalfBits __attribute__((vector_size(PTRAIN_VECTOR_BYTES / 2)));

constexpr int float_lanes = PTRAIN_VECTOR_BYTES / 4;
constexpr int double_lanes = PTRAIN_VECTOR_BYTES / 8;

#define PTRAIN_INLINE static inline __attribute__((always_inline))
// Once in the binary, not once for each use: a kernel of many steps compiles in half the time.
#define PTRAIN_OUTLINE __attribute__((noinline))

template <typename Vector, typename Value>
PTRAIN_INLINE Vector load(const Value* from) {
  Vector vector;
  __builtin_memcpy(&vector, from, sizeof vector);
  return vector;
}

template <typename Vector, typename Value>
PTRAIN_INLINE void store(Value* to, Vector vector) {
  __builtin_memcpy(to, &vector, sizeof vector);
}

PTRAIN_INLINE Floats all(float value) { return value - Floats{}; }
PTRAIN_INLINE Doubles all(double value) { return value - Doubles{}; }

PTRAIN_INLINE Doubles widen(HalfFloats values) { return __builtin_convertvector(values, Doubles); }
PTRAIN_INLINE HalfFloats narrow(Doubles values) { return __builtin_convertvector(values, HalfFloats); }

// e^x for |x| <= 86.5, within 1 ulp; any number beyond; NaN for NaN. x = k ln 2 + r with |r| <= ln 2 / 2; the polynomial is the minimax one of (e^r - 1 - r) / r^2.
PTRAIN_INLINE Floats exp_near(Floats x) {
  const Floats rounder = all(12582912.0f);  // 1.5 * 2^23: adding it leaves the integer in the low bits
  const Floats shifted = x * 1.44269504088896341f + rounder;
  const Floats k = shifted - rounder;
  const Floats r = (x - k * 0.693359375f) + k * 2.12194440054690583e-4f;
  Floats q = all(0.00138145941914110627f);
  q = q * r + 0.008368716917760475919f;
  q = q * r + 0.04166838812672026485f;
  q = q * r + 0.1666652063142611405f;
  q = q * r + 0.4999999344748156972f;
  const Floats mantissa = (q * r) * r + r + 1.0f;
  return (Floats)((FloatWords)mantissa + ((FloatWords)shifted << 23));
}

// e^x for x <= 0, within 1 ulp; 0 below e^-86.5, the smallest that no step rounds to a subnormal.
PTRAIN_INLINE Floats exp_of(Floats x) { return x < -86.5f ? Floats{} : exp_near(x); }

PTRAIN_INLINE Floats magnitude_of(Floats x) { return (Floats)((FloatWords)x & 0x7fffffff); }

// Likewise for doubles: 0 below e^-708.
PTRAIN_INLINE Doubles exp_of(Doubles x) {
  const Doubles rounder = all(6755399441055744.0);  // 1.5 * 2^52
  const Doubles shifted = x * 1.44269504088896340736 + rounder;
  const Doubles k = shifted - rounder;
  const Doubles r = (x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10;
  Doubles q = all(2.500006662647746525e-8);
  q = q * r + 2.763024836847288204e-7;
  q = q * r + 2.75575863535222782e-6;
  q = q * r + 0.00002480149309902564965;
  q = q * r + 0.00019841269506607021;
  q = q * r + 0.001388888894362992624;
  q = q * r + 0.008333333333494445907;
  q = q * r + 0.04166666666653015935;
  q = q * r + 0.1666666666666641255;
  q = q * r + 0.5000000000000010627;
  const Doubles mantissa = (q * r) * r + r + 1.0;
  const Doubles power = (Doubles)((DoubleWords)mantissa + ((DoubleWords)shifted << 52));
  return x < -708.0 ? Doubles{} : power;
}

// log x for normal x > 0, within 1 ulp or so; -inf for 0, NaN for NaN. x = 2^k m with m within a factor
// sqrt(2) of 1, log m = 2 artanh s with s = (m - 1) / (m + 1).
PTRAIN_INLINE Doubles log_of(Doubles x) {
  const DoubleWords above = (DoubleWords)x - 0x3fe6a09e667f3bcdULL;  // less the square root of a half
  const DoubleBits exponent = (DoubleBits)above >> 52;               // arithmetic: rounds down
  const Doubles m = (Doubles)((DoubleWords)x - ((DoubleWords)exponent << 52));
  const Doubles k = __builtin_convertvector(exponent, Doubles);
  const Doubles f = m - 1.0;
  const Doubles s = f / (f + 2.0);
  const Doubles z = s * s;
  Doubles g = all(0.07396758987532733259);
  g = g * z + 0.07657165376024468252;
  g = g * z + 0.09091775806720975714;
  g = g * z + 0.111110994302662557;
  g = g * z + 0.1428571436951602655;
  g = g * z + 0.1999999999971669299;
  g = g * z + 0.3333333333333365341;
  const Doubles tail = 2.0 * s * z * g + k * 1.90821492927058770002e-10;
  const Doubles y = k * 6.93147180369123816490e-01 + (2.0 * s + tail);
  const Doubles with_zero = x == 0.0 ? all(-__builtin_inf()) : y;
  return x == x ? with_zero : x;
}

PTRAIN_INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }
PTRAIN_INLINE Doubles larger(Doubles a, Doubles b) { return a > b ? a : b; }

constexpr FloatBits float_lane = {
    0, 1, 2, 3,
#if PTRAIN_VECTOR_BYTES >= 32
    4, 5, 6, 7,
#endif
#if PTRAIN_VECTOR_BYTES >= 64
    8, 9, 10, 11, 12, 13, 14, 15,
#endif
};

// Over all lanes, halving: fixed order, and no way through memory.
PTRAIN_INLINE float sum_of(Floats values) {
  for (int width = float_lanes / 2; width > 0; width /= 2) {
    values += __builtin_shuffle(values, (float_lane + width) & (float_lanes - 1));
  }
  return values[0];
}

PTRAIN_INLINE float largest_of(Floats values) {
  for (int width = float_lanes / 2; width > 0; width /= 2) {
    values = larger(values, __builtin_shuffle(values, (float_lane + width) & (float_lanes - 1)));
  }
  return values[0];
}

// Asks for memory that will be read soon; an address outside of any array does no harm. Blocks lie far
// apart, and a processor does not guess by itself where a tile of many of them goes on. Into the second-level
// cache: the first one is full of the tile that is being worked on.
PTRAIN_INLINE void fetch_soon(const void* from, std::int64_t bytes) {
  const char* line = static_cast<const char*>(from);
  for (std::int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(line + i, 0, 2);
}
