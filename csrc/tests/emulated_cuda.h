// Runs CUDA kernels on a CPU, for tests: the threads of a block as fibers that take turns.
//
// A fiber runs until it must wait for its warp or its block, then the next one runs. Blocks run one after
// another, in an order that a test may turn round: a kernel must not care. It shows wrong indices (under the
// address sanitizer: every access outside of an array), wrong arithmetic and barriers that not all threads
// reach. It does not show two threads that write one place, nor what a real compiler makes of it.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "sanitizers.h"

#if defined(PTRAIN_ADDRESS_SANITIZER)
#include <sanitizer/common_interface_defs.h>
#endif

#define PTRAIN_UNROLL
#define PTRAIN_NO_UNROLL
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static  // blocks run one after another

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct Dim3 {
  unsigned x;
};
inline Dim3 threadIdx, blockIdx, blockDim, gridDim;

template <typename T>
T __ldcs(const T* address) {
  if (reinterpret_cast<std::uintptr_t>(address) % sizeof(T) != 0) {
    std::fprintf(stderr, "a load of %zu bytes from %p\n", sizeof(T), static_cast<const void*>(address));
    std::abort();
  }
  return *address;
}
template <typename T>
void __stcs(T* address, T value) {
  if (reinterpret_cast<std::uintptr_t>(address) % sizeof(T) != 0) {
    std::fprintf(stderr, "a store of %zu bytes to %p\n", sizeof(T), static_cast<void*>(address));
    std::abort();
  }
  *address = value;
}

inline float __uint_as_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline std::uint32_t __float_as_uint(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

namespace ptrain::cuda {

using std::exp;
using std::expm1;
using std::fabs;
using std::fma;
using std::log;
using std::log1p;
using std::pow;
using std::sqrt;

// ------------------------------------------------------------------------------------------------ fibers
enum class Waits { for_nothing, for_warp, for_block, is_done };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Waits waits = Waits::for_nothing;
  void* sanitizer = nullptr;
};

struct Emulator {
  static constexpr std::size_t stack_bytes = 64 << 10;
  std::vector<Fiber> fibers;
  std::vector<double> exchange[2];  // what each thread shows its warp; by turns, so that one wait is enough
  std::vector<int> turn;
  std::function<void()> body;
  std::unique_ptr<double[]> shared;
  ucontext_t scheduler;
  void* scheduler_sanitizer = nullptr;
  const void* scheduler_stack = nullptr;
  std::size_t scheduler_stack_bytes = 0;
  int current = 0;
  bool blocks_backwards = false;

  static Emulator& get() {
    static Emulator emulator;
    return emulator;
  }

  void resume(int thread) {
    current = thread;
    threadIdx.x = static_cast<unsigned>(thread);
    Fiber& fiber = fibers[static_cast<std::size_t>(thread)];
#if defined(PTRAIN_ADDRESS_SANITIZER)
    __sanitizer_start_switch_fiber(&scheduler_sanitizer, fiber.stack.get(), stack_bytes);
#endif
    swapcontext(&scheduler, &fiber.context);
#if defined(PTRAIN_ADDRESS_SANITIZER)
    __sanitizer_finish_switch_fiber(scheduler_sanitizer, nullptr, nullptr);
#endif
  }

  void wait(Waits what) {
    Fiber& fiber = fibers[static_cast<std::size_t>(current)];
    fiber.waits = what;
#if defined(PTRAIN_ADDRESS_SANITIZER)
    __sanitizer_start_switch_fiber(what == Waits::is_done ? nullptr : &fiber.sanitizer, scheduler_stack,
                                   scheduler_stack_bytes);
#endif
    swapcontext(&fiber.context, &scheduler);
#if defined(PTRAIN_ADDRESS_SANITIZER)
    __sanitizer_finish_switch_fiber(fiber.sanitizer, nullptr, nullptr);
#endif
  }

  static void enter() {
    Emulator& emulator = get();
#if defined(PTRAIN_ADDRESS_SANITIZER)
    __sanitizer_finish_switch_fiber(nullptr, &emulator.scheduler_stack, &emulator.scheduler_stack_bytes);
#endif
    emulator.body();
    emulator.wait(Waits::is_done);
  }

  // Lets threads [begin, end) go on if all that are not done wait for the same.
  bool release(int begin, int end, Waits what) {
    bool any = false;
    for (int i = begin; i < end; ++i) {
      const Waits waits = fibers[static_cast<std::size_t>(i)].waits;
      if (waits == Waits::is_done) continue;
      if (waits != what) return false;
      any = true;
    }
    for (int i = begin; i < end; ++i) {
      Fiber& fiber = fibers[static_cast<std::size_t>(i)];
      if (fiber.waits == what) fiber.waits = Waits::for_nothing;
    }
    return any;
  }

  void run_block(int threads) {
    if (fibers.size() < static_cast<std::size_t>(threads)) fibers.resize(static_cast<std::size_t>(threads));
    exchange[0].assign(static_cast<std::size_t>(threads), 0.0);
    exchange[1] = exchange[0];
    turn.assign(static_cast<std::size_t>(threads), 0);
    for (int i = 0; i < threads; ++i) {
      Fiber& fiber = fibers[static_cast<std::size_t>(i)];
      if (fiber.stack == nullptr) fiber.stack = std::make_unique_for_overwrite<char[]>(stack_bytes);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = stack_bytes;
      fiber.context.uc_link = nullptr;
      fiber.waits = Waits::for_nothing;
      makecontext(&fiber.context, &Emulator::enter, 0);
    }
    for (;;) {
      bool progress = false, all_done = true;
      for (int i = 0; i < threads; ++i) {
        Waits& waits = fibers[static_cast<std::size_t>(i)].waits;
        if (waits == Waits::for_nothing) {
          resume(i);
          progress = true;
        }
        all_done &= waits == Waits::is_done;
      }
      if (all_done) return;
      for (int i = 0; i < threads; i += 32) progress |= release(i, i + 32 < threads ? i + 32 : threads, Waits::for_warp);
      progress |= release(0, threads, Waits::for_block);
      if (!progress) {
        std::fprintf(stderr, "threads of a block wait for one another for ever\n");
        std::abort();
      }
    }
  }
};

inline bool& blocks_backwards() { return Emulator::get().blocks_backwards; }

inline double* shared_memory() { return Emulator::get().shared.get(); }

template <typename... Parameters>
Failure launch_with_memory(void (*kernel)(Parameters...), std::int64_t blocks, int threads, int shared_bytes, Stream,
                           Parameters... arguments) {
  Emulator& emulator = Emulator::get();
  emulator.shared = std::make_unique<double[]>(static_cast<std::size_t>(shared_bytes + 7) / 8);
  emulator.body = [=] { kernel(arguments...); };
  blockDim.x = static_cast<unsigned>(threads);
  gridDim.x = static_cast<unsigned>(blocks);
  for (std::int64_t i = 0; i < blocks; ++i) {
    blockIdx.x = static_cast<unsigned>(emulator.blocks_backwards ? blocks - 1 - i : i);
    emulator.run_block(threads);
  }
  return nullptr;
}

// ------------------------------------------------------------------------------------------ warp and block
inline void __syncthreads() { Emulator::get().wait(Waits::for_block); }
inline void __syncwarp() { Emulator::get().wait(Waits::for_warp); }

// What the threads of the warp show, by their number in the block.
inline const std::vector<double>& show(double mine) {
  Emulator& emulator = Emulator::get();
  const auto me = static_cast<std::size_t>(emulator.current);
  std::vector<double>& exchange = emulator.exchange[emulator.turn[me] ^= 1];
  exchange[me] = mine;
  emulator.wait(Waits::for_warp);
  return exchange;
}

template <typename T>
T __shfl_xor_sync(unsigned, T value, int distance) {
  static_assert(sizeof(T) <= sizeof(double));
  const int me = Emulator::get().current;
  double mine = 0.0;
  std::memcpy(&mine, &value, sizeof value);
  const double shown = show(mine)[static_cast<std::size_t>(me ^ distance)];
  std::memcpy(&value, &shown, sizeof value);
  return value;
}

inline unsigned __ballot_sync(unsigned, bool mine) {
  const int first = Emulator::get().current / 32 * 32;
  const std::vector<double>& shown = show(mine ? 1.0 : 0.0);
  unsigned bits = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (shown[static_cast<std::size_t>(first + lane)] != 0.0) bits |= 1u << lane;
  }
  return bits;
}

// -------------------------------------------------------------------------------------------- arithmetic
template <typename T>
__attribute__((noinline)) T rounded_product(T a, T b) {
  return a * b;
}

inline float float_of_half_bits(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
  const float sign = bits & 0x8000u ? -1.0f : 1.0f;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return sign * (exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                               : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25));
}

inline std::uint16_t half_bits_of_float(float value) {
  const std::uint16_t sign = std::signbit(value) ? 0x8000u : 0u;
  if (value != value) return 0x7fffu;
  const double size = std::fabs(static_cast<double>(value));
  if (size >= 65520.0) return static_cast<std::uint16_t>(sign | 0x7c00u);
  int exponent = 0;
  std::frexp(size, &exponent);
  exponent = size == 0.0 || exponent < -13 ? -13 : exponent;  // below 2^-14 the steps stay 2^-24
  const double steps = std::nearbyint(std::ldexp(size, 11 - exponent));  // to even, up to 2048
  const int whole = static_cast<int>(steps);
  return static_cast<std::uint16_t>(sign | (((exponent + 13) << 10) + whole));
}

}  // namespace ptrain::cuda
