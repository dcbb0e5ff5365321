// What the glue needs of CUDA: the current stream, scratch memory, and tables on the device.
//
// No CUDA header and no CUDA library: memory comes from torch's allocator, kernels from csrc/cuda/launch.h. What
// a call allocates is given back when it ends, which the allocator orders behind the kernels in the stream.
#pragma once

#if PTRAIN_CUDA

#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "../cuda/launch.h"
#include "glue.h"

#pragma GCC visibility push(hidden)

namespace ptrain::glue {

// Makes a device the current one, for as long as this lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(std::int32_t index) {
    if (aoti_torch_create_device_guard(index, &handle_)) fail_in_torch("could not change the current device");
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  ~DeviceGuard() { aoti_torch_delete_device_guard(handle_); }

 private:
  DeviceGuardHandle handle_ = nullptr;
};

// One call of an op on the device of a tensor, which is current while this lives.
class CudaCall {
 public:
  CudaCall(const char* op, const Tensor& beside)
      : op_(op), beside_(beside), guard_(beside.get_device_index()), stream_(nullptr) {
    if (aoti_torch_get_current_cuda_stream == nullptr) {
      fail({op, ": this torch has no CUDA"});
    }
    if (aoti_torch_get_current_cuda_stream(beside.get_device_index(), &stream_)) {
      fail_in_torch("could not say which CUDA stream is current");
    }
  }

  cuda::Stream stream() const { return stream_; }

  void check(cuda::Failure failure) const {
    if (failure != nullptr) fail({op_, ": CUDA says: ", failure});
  }

  // Room for this many, until the call ends.
  template <typename T>
  T* room(std::int64_t count) {
    const std::vector<std::int64_t> bytes{count * static_cast<std::int64_t>(sizeof(T)) + 16};
    keep(new_beside(beside_, bytes, ScalarType::Byte));
    return static_cast<T*>(kept_.back().mutable_data_ptr());
  }

  // A copy on the device. The host's memory is free again on return.
  template <typename T>
  const T* upload(const std::vector<T>& values) {
    static_assert(std::is_trivially_copyable_v<T>);
    const std::size_t bytes = values.size() * sizeof(T);
    T* device = room<T>(static_cast<std::int64_t>(values.size()));
    if (bytes % 16 == 0) {
      check(cuda::write(device, values.data(), static_cast<std::int64_t>(bytes), stream_));
    } else {
      std::vector<char> padded((bytes + 15) / 16 * 16);
      std::memcpy(padded.data(), values.data(), bytes);
      check(cuda::write(device, padded.data(), static_cast<std::int64_t>(padded.size()), stream_));
    }
    return device;
  }

  // A tensor that must live until the kernels are in the stream.
  const Tensor& keep(Tensor tensor) {
    kept_.push_back(std::move(tensor));
    return kept_.back();
  }

  std::int32_t device_index() const { return beside_.get_device_index(); }

 private:
  const char* op_;
  Tensor beside_;
  DeviceGuard guard_;
  void* stream_;
  std::vector<Tensor> kept_;
};

// A number that a kernel reads: where it lies on this device, or a copy there.
inline const double* on_device(CudaCall& call, const Tensor& number) {
  if (number.is_cpu()) {
    return call.upload(std::vector<double>{*static_cast<const double*>(number.const_data_ptr())});
  }
  if (number.get_device_index() == call.device_index()) return static_cast<const double*>(number.const_data_ptr());
  fail("ptrain: a number on another CUDA device than the tensors it is for; bring it there with .to()");
}

}  // namespace ptrain::glue

#pragma GCC visibility pop

#endif  // PTRAIN_CUDA
