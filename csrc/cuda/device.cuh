// What every kernel needs of a device: launches, 16-byte accesses, 16-bit floats, sums in a fixed order.
//
// The kernels are compiled by nvcc, and by any C++ compiler against csrc/tests/emulated_cuda.h, which runs the
// threads of a block in turn: so their indices and their arithmetic are tested where there is no GPU.
#pragma once

#include "launch.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
// Before a loop. Short ones are written out; a loop of unknown length costs fewer registers if it is not.
#define PTRAIN_UNROLL _Pragma("unroll")
#define PTRAIN_NO_UNROLL _Pragma("unroll 1")
#else
#include "../tests/emulated_cuda.h"
#endif

namespace ptrain::cuda {

#if defined(__CUDACC__)

// A product that is not fused with the sum it goes into.
__device__ inline float rounded_product(float a, float b) { return __fmul_rn(a, b); }
__device__ inline double rounded_product(double a, double b) { return __dmul_rn(a, b); }

__device__ inline float float_of_half_bits(std::uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

__device__ inline std::uint16_t half_bits_of_float(float value) {
  std::uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

inline Failure in_words(cudaError_t error) {
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Arguments must have the very types of the kernel's parameters.
template <typename... Parameters>
Failure launch_with_memory(void (*kernel)(Parameters...), std::int64_t blocks, int threads, int shared_bytes,
                           Stream stream, Parameters... arguments) {
  if (blocks == 0) return nullptr;
  if (blocks > 0x7fffffff) return "more blocks of threads than a launch can have";
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), static_cast<unsigned>(shared_bytes),
           static_cast<cudaStream_t>(stream)>>>(arguments...);
  return in_words(cudaGetLastError());
}

// The memory that the threads of a block share, as large as the launch said.
__device__ inline double* shared_memory() {
  extern __shared__ double shared_doubles[];
  return shared_doubles;
}

#endif

template <typename... Parameters>
Failure launch(void (*kernel)(Parameters...), std::int64_t blocks, int threads, Stream stream,
               Parameters... arguments) {
  return launch_with_memory(kernel, blocks, threads, 0, stream, arguments...);
}

constexpr int warp_size = 32;
constexpr unsigned all_lanes = 0xffffffffu;

// --------------------------------------------------------------------------------------- 16-bit floats
struct Bfloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(Bfloat16 x) { return __uint_as_float(static_cast<std::uint32_t>(x.bits) << 16); }
__device__ inline float widen(Float16 x) { return float_of_half_bits(x.bits); }

template <typename T>
struct Narrow;
template <>
struct Narrow<float> {
  __device__ static float of(float x) { return x; }
};
template <>
struct Narrow<double> {
  __device__ static double of(double x) { return x; }
};
template <>
struct Narrow<Bfloat16> {
  // To nearest, ties to even, in integers: also on devices that have no instruction for it.
  __device__ static Bfloat16 of(float x) {
    const std::uint32_t bits = __float_as_uint(x);
    if (x != x) return {static_cast<std::uint16_t>((bits >> 16) | 0x40u)};
    return {static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
  }
};
template <>
struct Narrow<Float16> {
  __device__ static Float16 of(float x) { return {half_bits_of_float(x)}; }
};

// ------------------------------------------------------------------------------------- packs of elements
// N neighbouring elements, read and written at once and past the caches: a model is larger than they are.
template <typename T, int N>
struct Pack {
  T at[N];
};

template <int bytes>
struct Word;
template <>
struct Word<16> {
  using type = uint4;
};
template <>
struct Word<8> {
  using type = uint2;
};

template <int N, typename T>
__device__ inline Pack<T, N> load_pack(const T* address) {
  using W = typename Word<sizeof(T) * N>::type;
  const W word = __ldcs(reinterpret_cast<const W*>(address));
  Pack<T, N> pack;
  memcpy(&pack, &word, sizeof pack);
  return pack;
}

template <int N, typename T>
__device__ inline void store_pack(T* address, const Pack<T, N>& pack) {
  using W = typename Word<sizeof(T) * N>::type;
  W word;
  memcpy(&word, &pack, sizeof word);
  __stcs(reinterpret_cast<W*>(address), word);
}

template <int N, typename T>
__device__ inline bool aligned_for_packs(const T* address) {
  return reinterpret_cast<std::uintptr_t>(address) % (sizeof(T) * N) == 0;
}

// ------------------------------------------------------------------------------------------------ tables
// The row that a chunk belongs to: the last one with first_chunk <= chunk. All lanes of a warp look together,
// a 32nd of what is left per turn: two turns for 1024 rows.
template <typename Row>
__device__ inline std::int64_t row_of_chunk(const Row* rows, std::int64_t count, std::int32_t chunk) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  std::int64_t first = 0, left = count;
  while (left > 1) {
    const std::int64_t stride = (left + warp_size - 1) / warp_size;
    const std::int64_t mine = lane * stride;
    const bool not_after = mine < left && rows[first + mine].first_chunk <= chunk;
    const int found = __popc(__ballot_sync(all_lanes, not_after)) - 1;  // lane 0's row is never after it
    first += found * stride;
    left = left - found * stride < stride ? left - found * stride : stride;
  }
  return first;
}

// The part of a row that one block works on.
struct Span {
  std::int64_t begin;
  int size;
};

template <typename Row>
__device__ inline Span span_of_chunk(const Row& row, std::int32_t chunk, std::int64_t elements_per_chunk) {
  const std::int64_t begin = (chunk - row.first_chunk) * elements_per_chunk;
  const std::int64_t left = row.size - begin;
  return {begin, static_cast<int>(left < elements_per_chunk ? left : elements_per_chunk)};
}

// -------------------------------------------------------------------------------------------------- sums
// A power of two of neighbouring threads, or the whole block, that work on one thing. Every thread of the block
// must take part in each call, in the same order; every one gets the result, always added up in the same order.
struct Group {
  int lanes;  // up to 32, or all threads of the block
  int lane;   // of this thread
  int index;  // of the group in its block

  __device__ explicit Group(int size)
      : lanes(size), lane(static_cast<int>(threadIdx.x) % size), index(static_cast<int>(threadIdx.x) / size) {}

  // Makes what one thread has written known to the others.
  __device__ void sync() const {
    if (lanes <= warp_size) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }

  template <typename T>
  __device__ T sum(T value) const {
    return reduce(value, [](T a, T b) { return a + b; });
  }

  // NaN does not count.
  template <typename T>
  __device__ T max(T value) const {
    return reduce(value, [](T a, T b) { return b > a ? b : a; });
  }

 private:
  template <typename T, typename Join>
  __device__ T reduce(T value, Join join) const {
    for (int distance = (lanes < warp_size ? lanes : warp_size) / 2; distance > 0; distance /= 2) {
      value = join(value, __shfl_xor_sync(all_lanes, value, distance));
    }
    if (lanes <= warp_size) return value;
    __shared__ double of_warp[warp_size];
    const int thread = static_cast<int>(threadIdx.x);
    __syncthreads();  // of_warp may still be read from the last call
    if (thread % warp_size == 0) of_warp[thread / warp_size] = value;
    __syncthreads();
    value = static_cast<T>(of_warp[0]);
    for (int warp = 1; warp < lanes / warp_size; ++warp) value = join(value, static_cast<T>(of_warp[warp]));
    return value;
  }
};

__device__ inline double sum_of_block(double value) { return Group(static_cast<int>(blockDim.x)).sum(value); }

}  // namespace ptrain::cuda
