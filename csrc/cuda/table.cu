// Carries tables to the device as arguments of a kernel.
#include "device.cuh"

namespace ptrain::cuda {
namespace {

constexpr int write_threads = 128;

template <int bytes>
struct Payload {
  uint4 words[bytes / 16];
};

template <int bytes>
__global__ void __launch_bounds__(write_threads)
    write_kernel(uint4* device, int count, const __grid_constant__ Payload<bytes> payload) {
  const int word = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (word < count) device[word] = payload.words[word];
}

// Kernels may have 4 KiB of arguments, from CUDA 12.1 on 32,764 bytes.
constexpr int small_bytes = 4000;
#if defined(CUDART_VERSION) && CUDART_VERSION < 12010
constexpr int large_bytes = small_bytes;
#else
constexpr int large_bytes = 32000;
#endif

template <int bytes>
Failure write_part(uint4* device, const char* host, std::int64_t size, Stream stream) {
  Payload<bytes> payload;
  memcpy(&payload, host, static_cast<std::size_t>(size));
  const int words = static_cast<int>(size / 16);
  return launch(write_kernel<bytes>, (words + write_threads - 1) / write_threads, write_threads, stream,
                device, words, payload);
}

}  // namespace

Failure write(void* device, const void* host, std::int64_t bytes, Stream stream) {
  const char* next = static_cast<const char*>(host);
  uint4* to = static_cast<uint4*>(device);
  while (bytes > 0) {
    const std::int64_t size = bytes < large_bytes ? bytes : large_bytes;
    const Failure failure = size <= small_bytes ? write_part<small_bytes>(to, next, size, stream)
                                                : write_part<large_bytes>(to, next, size, stream);
    if (failure != nullptr) return failure;
    next += size;
    to += size / 16;
    bytes -= size;
  }
  return nullptr;
}

bool is_capturing(Stream stream) {
#if defined(__CUDACC__)
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status) != cudaSuccess) {
    cudaGetLastError();  // the legacy stream while another one captures: that one is not captured itself
    return false;
  }
  return status != cudaStreamCaptureStatusNone;
#else
  return stream != nullptr;
#endif
}

}  // namespace ptrain::cuda
