// The moving average of flat arrays, once for each instruction set: see each_isa.h.
//
// Vectors are written out and products are kept from being fused with sums, so every set, and the scalar
// loops beside it, round alike: a model is the same to the last bit wherever it is averaged. It costs
// nothing, as memory is what these loops wait for.
namespace {

typedef float Floats __attribute__((vector_size(PTRAIN_VECTOR_BYTES)));
typedef double Doubles __attribute__((vector_size(PTRAIN_VECTOR_BYTES)));
typedef std::uint32_t Words __attribute__((vector_size(PTRAIN_VECTOR_BYTES)));
typedef std::uint16_t Halves __attribute__((vector_size(PTRAIN_VECTOR_BYTES / 2)));
typedef std::int16_t Halves16 __attribute__((vector_size(PTRAIN_VECTOR_BYTES / 2)));  // as the builtins want them
typedef std::int32_t Ints __attribute__((vector_size(PTRAIN_VECTOR_BYTES)));

template <typename Vector, typename Element>
inline Vector read(const Element* from) {
  Vector vector;
  __builtin_memcpy(&vector, from, sizeof vector);
  return vector;
}

// One instruction; GCC 12 makes five of the conversion to a vector of 64 bytes. 4: the rounding of the moment,
// which a widening does not need.
inline Words widened(const std::uint16_t* from) {
#if PTRAIN_VECTOR_BYTES == 64 && PTRAIN_GCC
  return (Words)__builtin_ia32_pmovzxwd512_mask((Halves16)read<Halves>(from), (Ints)Words{}, 0xffff);
#elif PTRAIN_VECTOR_BYTES == 32 && PTRAIN_GCC
  return (Words)__builtin_ia32_pmovzxwd256((Halves16)read<Halves>(from));
#else
  return __builtin_convertvector(read<Halves>(from), Words);
#endif
}

inline Floats floats_from_float16(const std::uint16_t* from) {
#if PTRAIN_VECTOR_BYTES == 64 && PTRAIN_GCC
  return __builtin_ia32_vcvtph2ps512_mask((Halves16)read<Halves>(from), Floats{}, (unsigned short)0xffff, 4);
#elif PTRAIN_VECTOR_BYTES == 32 && PTRAIN_GCC
  return __builtin_ia32_vcvtph2ps256((Halves16)read<Halves>(from));
#elif PTRAIN_VECTOR_BYTES == 64
  return (Floats)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i*)from));
#elif PTRAIN_VECTOR_BYTES == 32
  return (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#else  // as float_from_float16
  const Words bits = widened(from);
  const Words sign = (bits & 0x8000u) << 16, magnitude = (bits & 0x7fffu) << 13;
  const Words exponent = bits & 0x7c00u;
  const Floats subnormal = (Floats)(magnitude + (113u << 23)) - 0x1p-14f;
  const Words top = (Words)(exponent == 0x7c00u) & (112u << 23);
  const Words is_subnormal = (Words)(exponent == 0u);
  const Words normal = magnitude + (112u << 23) + top;
  return (Floats)(sign | (is_subnormal & (Words)subnormal) | (~is_subnormal & normal));
#endif
}

// How weights of a type are read, many at a time.
struct Float32Weights : ptrain::Float32Weight {
  using Vector = Floats;
  static Vector many(const Stored* from) { return read<Vector>(from); }
};
struct Float64Weights : ptrain::Float64Weight {
  using Vector = Doubles;
  static Vector many(const Stored* from) { return read<Vector>(from); }
};
struct Bfloat16Weights : ptrain::Bfloat16Weight {
  using Vector = Floats;
  static Vector many(const Stored* from) { return (Vector)(widened(from) << 16); }
};
struct Float16Weights : ptrain::Float16Weight {
  using Vector = Floats;
  static Vector many(const Stored* from) { return floats_from_float16(from); }
};

template <bool from_shadow, typename Weights>
inline void update_many(typename Weights::Shadow* shadow, const typename Weights::Stored* weight,
                        typename Weights::Shadow factor) {
  using Vector = typename Weights::Vector;
  const Vector target = Weights::many(weight), before = read<Vector>(shadow);
  Vector product = factor * (target - before);
  PTRAIN_ROUND(product);
  const Vector after = from_shadow ? before + product : target - product;
  __builtin_memcpy(shadow, &after, sizeof after);
}

template <bool from_shadow, typename Weights>
void span(void* shadow_bytes, const void* weight_bytes, std::int64_t size, double factor_double) {
  using Shadow = typename Weights::Shadow;
  Shadow* shadow = static_cast<Shadow*>(shadow_bytes);
  const auto* weight = static_cast<const typename Weights::Stored*>(weight_bytes);
  const Shadow factor = static_cast<Shadow>(factor_double);
  constexpr std::int64_t step = PTRAIN_VECTOR_BYTES / sizeof(Shadow);
  std::int64_t i = 0;
  // Whole cache lines: a view into a flat buffer may begin anywhere, and a store that crosses a line is two.
  if (size >= 16 * step) {
    const auto past = reinterpret_cast<std::uintptr_t>(shadow) % PTRAIN_VECTOR_BYTES;
    const std::int64_t skipped = past == 0 ? 0 : (PTRAIN_VECTOR_BYTES - past) / sizeof(Shadow);
    for (; i < skipped; ++i) {
      update_one<from_shadow, Weights>(shadow + i, Weights::one(weight + i), factor);
    }
  }
  for (; i + 4 * step <= size; i += 4 * step) {
    for (int k = 0; k < 4; ++k) {
      update_many<from_shadow, Weights>(shadow + i + k * step, weight + i + k * step, factor);
    }
  }
  for (; i + step <= size; i += step) {
    update_many<from_shadow, Weights>(shadow + i, weight + i, factor);
  }
  for (; i < size; ++i) {
    update_one<from_shadow, Weights>(shadow + i, Weights::one(weight + i), factor);
  }
}

template <bool from_shadow>
constexpr EmaSpans spans_of = {
    span<from_shadow, Float32Weights>,
    span<from_shadow, Bfloat16Weights>,
    span<from_shadow, Float16Weights>,
    span<from_shadow, Float64Weights>,
};
constexpr EmaSpans const* ema_spans[2] = {&spans_of<false>, &spans_of<true>};

}  // namespace
