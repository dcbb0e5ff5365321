// The probe's loop, once for each instruction set: see each_isa.h.
namespace {

typedef float Floats __attribute__((vector_size(PTRAIN_VECTOR_BYTES)));

void probe_span(float* x, const float* y, std::int64_t size) {
  constexpr std::int64_t step = PTRAIN_VECTOR_BYTES / sizeof(float);
  std::int64_t i = 0;
  for (; i + 4 * step <= size; i += 4 * step) {
    for (int k = 0; k < 4; ++k) {
      Floats before, other;
      __builtin_memcpy(&before, x + i + k * step, sizeof before);
      __builtin_memcpy(&other, y + i + k * step, sizeof other);
      const Floats after = before * 0.5f + other;
      __builtin_memcpy(x + i + k * step, &after, sizeof after);
    }
  }
  for (; i < size; ++i) x[i] = x[i] * 0.5f + y[i];
}

constexpr ProbeSpan probe_table = probe_span;

}  // namespace
