// One stretch of one tensor through the whole step: see step.cpp.

// near_first ? first : second, by bits: an if on a fixed condition would make GCC write two loops.
inline float select(std::uint32_t take_first, float first, float second) {
  std::uint32_t a, b;
  std::memcpy(&a, &first, sizeof a);
  std::memcpy(&b, &second, sizeof b);
  return float_from_bits(b ^ ((a ^ b) & take_first));
}
inline double select(std::uint64_t take_first, double first, double second) {
  std::uint64_t a, b;
  std::memcpy(&a, &first, sizeof a);
  std::memcpy(&b, &second, sizeof b);
  b ^= (a ^ b) & take_first;
  std::memcpy(&first, &b, sizeof b);
  return first;
}

inline float square_root(float value) { return __builtin_sqrtf(value); }
inline double square_root(double value) { return __builtin_sqrt(value); }


template <typename Value, typename State, typename Mask, bool averaged>
void step_span(const StepSpan& span, const StepScalars& scalars) {
  Value* __restrict weight = static_cast<Value*>(span.weight);
  const Value* __restrict gradient = static_cast<const Value*>(span.gradient);
  State* __restrict exp_avg = static_cast<State*>(span.exp_avg);
  State* __restrict exp_avg_sq = static_cast<State*>(span.exp_avg_sq);
  State* __restrict shadow = static_cast<State*>(span.shadow);

  const State clip = static_cast<State>(scalars.clip);
  const State keep_weight = static_cast<State>(scalars.keep_weight);
  const State step_size = static_cast<State>(scalars.step_size);
  const State beta2 = static_cast<State>(scalars.beta2);
  const State one_minus_beta2 = static_cast<State>(scalars.one_minus_beta2);
  const State root_correction = static_cast<State>(scalars.root_correction);
  const State eps = static_cast<State>(scalars.eps);
  const State exp_avg_factor = static_cast<State>(scalars.exp_avg.factor);
  const State shadow_factor = static_cast<State>(scalars.shadow.factor);
  const Mask exp_avg_near = scalars.exp_avg.from_old ? ~Mask{0} : Mask{0};
  const Mask shadow_near = scalars.shadow.from_old ? ~Mask{0} : Mask{0};

  for (std::int64_t i = 0; i < span.size; ++i) {
    const State g = clip * widen(gradient[i]);
    const State old_m = exp_avg[i];
    const State m = select(exp_avg_near, old_m, g) + exp_avg_factor * (g - old_m);
    const State v = beta2 * exp_avg_sq[i] + one_minus_beta2 * g * g;
    const State denominator = square_root(v) * root_correction + eps;
    const State w = keep_weight * widen(weight[i]) - step_size * m / denominator;
    Value written;
    narrow(w, written);
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    weight[i] = written;
    if (averaged) {
      const State target = widen(written);
      const State old = shadow[i];
      shadow[i] = select(shadow_near, old, target) + shadow_factor * (target - old);
    }
  }
}

template <typename Value, typename State, typename Mask>
void average_span(const StepSpan& span, const StepScalars& scalars) {
  const Value* __restrict weight = static_cast<const Value*>(span.weight);
  State* __restrict shadow = static_cast<State*>(span.shadow);
  const State factor = static_cast<State>(scalars.shadow.factor);
  const Mask near = scalars.shadow.from_old ? ~Mask{0} : Mask{0};
  for (std::int64_t i = 0; i < span.size; ++i) {
    const State target = widen(weight[i]);
    const State old = shadow[i];
    shadow[i] = select(near, old, target) + factor * (target - old);
  }
}

template <typename Value, typename State, typename Mask>
constexpr StepLoops loops_of() {
  return {step_span<Value, State, Mask, false>, step_span<Value, State, Mask, true>,
          average_span<Value, State, Mask>};
}

constexpr StepLoops step_table[4] = {  // indexed by FloatType
    loops_of<float, float, std::uint32_t>(),
    loops_of<StoredBfloat16, float, std::uint32_t>(),
    loops_of<StoredFloat16, float, std::uint32_t>(),
    loops_of<double, double, std::uint64_t>(),
};
