// A tensor as the ops hold it: a counted handle of torch's, with the few questions that are asked of it.
#pragma once

#include <cstring>
#include <optional>
#include <vector>

#include "../core/parallel.h"
#include "shim.h"

#pragma GCC visibility push(hidden)

namespace ptrain::glue {

[[noreturn]] void fail_in_torch(const char* what);

// For what a sound tensor is asked: it fails where torch itself is at its end.
inline void ask(AOTITorchError error) {
  if (error != 0) fail_in_torch("could not say what a tensor is");
}

class Tensor {
 public:
  explicit Tensor(AtenTensorHandle owned) : handle_(owned) {}
  Tensor(const Tensor& other);
  Tensor(Tensor&& other) noexcept : handle_(other.handle_) { other.handle_ = nullptr; }
  Tensor& operator=(Tensor other) noexcept {
    AtenTensorHandle const handle = handle_;
    handle_ = other.handle_;
    other.handle_ = handle;
    return *this;
  }
  ~Tensor() {
    if (handle_ != nullptr) drop();
  }

  AtenTensorHandle get() const { return handle_; }
  // A handle of its own, for whom it is given to.
  AtenTensorHandle another() const;

  std::int64_t dim() const;
  const std::int64_t* sizes() const;  // borrowed, as are the strides: until the tensor changes
  const std::int64_t* strides() const;
  std::int64_t size(std::int64_t d) const { return sizes()[d]; }
  std::int64_t stride(std::int64_t d) const { return strides()[d]; }
  std::int64_t numel() const;
  ScalarType scalar_type() const;
  std::int32_t device_type() const;
  std::int32_t get_device_index() const;
  bool is_cpu() const { return device_type() == aoti_torch_device_type_cpu(); }
  bool is_cuda() const { return device_type() == aoti_torch_device_type_cuda(); }
  bool is_strided() const;
  bool is_contiguous() const;
  void* mutable_data_ptr() const;
  const void* const_data_ptr() const;

 private:
  void drop() noexcept;

  AtenTensorHandle handle_;
};

using MaybeTensor = std::optional<Tensor>;
using Sizes = std::vector<std::int64_t>;

bool same_device(const Tensor& one, const Tensor& other);
Sizes shape_vector(const Tensor& tensor);

// Dense, in order, not yet written.
Tensor new_tensor(const Sizes& shape, ScalarType type, std::int32_t device_type, std::int32_t device_index);
inline Tensor new_tensor(const Sizes& shape, ScalarType type) {
  return new_tensor(shape, type, aoti_torch_device_type_cpu(), 0);
}
inline Tensor new_beside(const Tensor& other, const Sizes& shape, ScalarType type) {
  return new_tensor(shape, type, other.device_type(), other.get_device_index());
}

Tensor empty_like(const Tensor& tensor);
Tensor contiguous(const Tensor& tensor);
void copy_into(const Tensor& to, const Tensor& from);
void zero(const Tensor& tensor);

// torch's own threads, as the kernels ask for them: no second pool beside it.
void torch_for(std::int64_t count, std::int64_t grain, RangeTask task, void* context);

// -----------------------------------------------------------------------------------

inline Tensor::Tensor(const Tensor& other) : handle_(other.another()) {}

inline AtenTensorHandle Tensor::another() const {
  AtenTensorHandle copy = nullptr;
  ask(aoti_torch_new_tensor_handle(handle_, &copy));
  return copy;
}

inline void Tensor::drop() noexcept { aoti_torch_delete_tensor_object(handle_); }

inline std::int64_t Tensor::dim() const {
  std::int64_t dimensions = 0;
  ask(aoti_torch_get_dim(handle_, &dimensions));
  return dimensions;
}

inline const std::int64_t* Tensor::sizes() const {
  std::int64_t* sizes = nullptr;
  ask(aoti_torch_get_sizes(handle_, &sizes));
  return sizes;
}

inline const std::int64_t* Tensor::strides() const {
  std::int64_t* strides = nullptr;
  ask(aoti_torch_get_strides(handle_, &strides));
  return strides;
}

inline std::int64_t Tensor::numel() const {
  std::int64_t elements = 0;
  ask(aoti_torch_get_numel(handle_, &elements));
  return elements;
}

inline ScalarType Tensor::scalar_type() const {
  std::int32_t type = 0;
  ask(aoti_torch_get_dtype(handle_, &type));
  return static_cast<ScalarType>(type);
}

inline std::int32_t Tensor::device_type() const {
  std::int32_t type = 0;
  ask(aoti_torch_get_device_type(handle_, &type));
  return type;
}

inline std::int32_t Tensor::get_device_index() const {
  std::int32_t index = 0;
  ask(aoti_torch_get_device_index(handle_, &index));
  return index;
}

inline bool Tensor::is_strided() const {
  std::int32_t layout = 0;
  ask(aoti_torch_get_layout(handle_, &layout));
  return layout == aoti_torch_layout_strided();
}

inline bool Tensor::is_contiguous() const {
  bool is = false;
  ask(aoti_torch_is_contiguous(handle_, &is));
  return is;
}

inline void* Tensor::mutable_data_ptr() const {
  void* memory = nullptr;
  ask(torch_get_mutable_data_ptr(handle_, &memory));
  return memory;
}

inline const void* Tensor::const_data_ptr() const {
  const void* memory = nullptr;
  ask(torch_get_const_data_ptr(handle_, &memory));
  return memory;
}

inline bool same_device(const Tensor& one, const Tensor& other) {
  return one.device_type() == other.device_type() && one.get_device_index() == other.get_device_index();
}

inline Sizes shape_vector(const Tensor& tensor) {
  const std::int64_t* sizes = tensor.sizes();
  return Sizes(sizes, sizes + tensor.dim());
}

inline Tensor new_tensor(const Sizes& shape, ScalarType type, std::int32_t device_type,
                         std::int32_t device_index) {
  std::int64_t some[8];
  Sizes many;
  std::int64_t* strides = some;
  if (shape.size() > 8) {
    many.resize(shape.size());
    strides = many.data();
  }
  std::int64_t step = 1;
  for (std::size_t d = shape.size(); d-- > 0; step *= shape[d] > 1 ? shape[d] : 1) strides[d] = step;
  AtenTensorHandle made = nullptr;
  if (aoti_torch_empty_strided(static_cast<std::int64_t>(shape.size()), shape.data(), strides,
                               static_cast<std::int32_t>(type), device_type, device_index, &made)) {
    fail_in_torch("could not make a tensor: is there memory?");
  }
  return Tensor(made);
}

inline Tensor empty_like(const Tensor& tensor) {
  StableIValue stack[6] = {reinterpret_cast<StableIValue>(tensor.another())};  // and no options
  if (torch_call_dispatcher("aten::empty_like", "", stack, built_for)) {
    fail_in_torch("could not make a tensor: is there memory?");
  }
  return Tensor(reinterpret_cast<AtenTensorHandle>(stack[0]));
}

inline Tensor contiguous(const Tensor& tensor) {
  if (tensor.is_contiguous()) return tensor;
  const std::int32_t format = aoti_torch_memory_format_contiguous_format();
  StableIValue stack[2] = {reinterpret_cast<StableIValue>(tensor.another())};
  std::memcpy(&stack[1], &format, sizeof format);
  if (torch_call_dispatcher("aten::contiguous", "", stack, built_for)) {
    fail_in_torch("could not make a tensor contiguous: is there memory?");
  }
  return Tensor(reinterpret_cast<AtenTensorHandle>(stack[0]));
}

inline void copy_into(const Tensor& to, const Tensor& from) {
  if (aoti_torch_copy_(to.get(), from.get(), 0)) fail_in_torch("could not copy a tensor");
}

inline void zero(const Tensor& tensor) {
  if (aoti_torch_zero_(tensor.get())) fail_in_torch("could not set a tensor to zero");
}

inline void torch_for(std::int64_t count, std::int64_t grain, RangeTask task, void* context) {
  if (count <= 0) return;
  if (torch_parallel_for(0, count, grain, task, context)) fail_in_torch("failed in its parallel_for");
}

}  // namespace ptrain::glue

#pragma GCC visibility pop
