// The functions of torch's C shim that the ops use, declared as torch 2.10 and all later versions have them.
//
// torch's own headers for it (torch/csrc/stable) take a second to read, and the C++ around them another to
// compile: a third of what the whole library may take. tests/ops/test_abi.py compiles these lines beside
// torch's, which a compiler refuses where they differ, and compares the numbers.
#pragma once

#include <cstddef>
#include <cstdint>

struct AtenTensorOpaque;
using AtenTensorHandle = AtenTensorOpaque*;
struct TorchLibraryOpaque;
using TorchLibraryHandle = TorchLibraryOpaque*;
struct StableListOpaque;
using StableListHandle = StableListOpaque*;
struct StringOpaque;
using StringHandle = StringOpaque*;
struct DeviceGuardOpaque;
using DeviceGuardHandle = DeviceGuardOpaque*;

using AOTITorchError = std::int32_t;  // not 0: it failed
using StableIValue = std::uint64_t;

extern "C" {
#pragma GCC visibility push(default)

// ---- tensors. A handle is given back with aoti_torch_delete_tensor_object.
AOTITorchError aoti_torch_new_tensor_handle(AtenTensorHandle orig, AtenTensorHandle* copy);
AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle tensor);
AOTITorchError aoti_torch_get_data_ptr(AtenTensorHandle tensor, void** data);
AOTITorchError torch_get_mutable_data_ptr(AtenTensorHandle tensor, void** data);
AOTITorchError torch_get_const_data_ptr(AtenTensorHandle tensor, const void** data);
AOTITorchError aoti_torch_get_storage_size(AtenTensorHandle tensor, std::int64_t* bytes);
AOTITorchError aoti_torch_get_storage_offset(AtenTensorHandle tensor, std::int64_t* elements);
AOTITorchError aoti_torch_get_dim(AtenTensorHandle tensor, std::int64_t* dimensions);
AOTITorchError aoti_torch_get_numel(AtenTensorHandle tensor, std::int64_t* elements);
AOTITorchError aoti_torch_get_sizes(AtenTensorHandle tensor, std::int64_t** borrowed);
AOTITorchError aoti_torch_get_strides(AtenTensorHandle tensor, std::int64_t** borrowed);
AOTITorchError aoti_torch_get_dtype(AtenTensorHandle tensor, std::int32_t* dtype);
AOTITorchError aoti_torch_get_device_type(AtenTensorHandle tensor, std::int32_t* type);
AOTITorchError aoti_torch_get_device_index(AtenTensorHandle tensor, std::int32_t* index);
AOTITorchError aoti_torch_get_layout(AtenTensorHandle tensor, std::int32_t* layout);
AOTITorchError aoti_torch_is_contiguous(AtenTensorHandle tensor, bool* is_contiguous);
AOTITorchError aoti_torch_empty_strided(std::int64_t dimensions, const std::int64_t* sizes,
                                        const std::int64_t* strides, std::int32_t dtype,
                                        std::int32_t device_type, std::int32_t device_index,
                                        AtenTensorHandle* made);
AOTITorchError aoti_torch_copy_(AtenTensorHandle self, AtenTensorHandle from, std::int32_t non_blocking);
AOTITorchError aoti_torch_zero_(AtenTensorHandle self);

std::int32_t aoti_torch_device_type_cpu();
std::int32_t aoti_torch_device_type_cuda();
std::int32_t aoti_torch_layout_strided();
std::int32_t aoti_torch_memory_format_contiguous_format();
std::size_t aoti_torch_dtype_element_size(std::int32_t dtype);

// ---- what ops are called with
AOTITorchError torch_list_size(StableListHandle list, std::size_t* size);
AOTITorchError torch_list_get_item(StableListHandle list, std::size_t index, StableIValue* item);
AOTITorchError torch_delete_list(StableListHandle list);
AOTITorchError torch_new_string_handle(const char* data, std::size_t length, StringHandle* made);
AOTITorchError torch_string_length(StringHandle text, std::size_t* length);
AOTITorchError torch_string_c_str(StringHandle text, const char** data);
AOTITorchError torch_delete_string(StringHandle text);
AOTITorchError torch_call_dispatcher(const char* op, const char* overload, StableIValue* stack,
                                     std::uint64_t built_for);

// ---- the library of ops
AOTITorchError aoti_torch_library_init_def(const char* space, const char* file, std::uint32_t line,
                                           TorchLibraryHandle* made);
AOTITorchError aoti_torch_library_init_impl(const char* space, const char* key, const char* file,
                                            std::uint32_t line, TorchLibraryHandle* made);
AOTITorchError aoti_torch_library_def(TorchLibraryHandle library, const char* schema);
AOTITorchError torch_library_impl(TorchLibraryHandle library, const char* name,
                                  void (*op)(StableIValue*, std::uint64_t, std::uint64_t), std::uint64_t built_for);
AOTITorchError aoti_torch_delete_library_object(TorchLibraryHandle library);

// ---- threads, devices, versions
AOTITorchError torch_parallel_for(std::int64_t begin, std::int64_t end, std::int64_t grain,
                                  void (*task)(std::int64_t begin, std::int64_t end, void* context), void* context);
AOTITorchError aoti_torch_create_device_guard(std::int32_t index, DeviceGuardHandle* made);
AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle guard);
// Of a torch with CUDA; null in one without.
__attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(std::int32_t index, void** stream);

#pragma GCC visibility pop
}

namespace ptrain::glue {

// The numbers that torch gives its types, which never change: its files are made of them.
enum class ScalarType : std::int32_t {
  Byte = 0,
  Char = 1,
  Short = 2,
  Int = 3,
  Long = 4,
  Half = 5,
  Float = 6,
  Double = 7,
  Bool = 11,
  BFloat16 = 15,
  UInt16 = 27,
  UInt32 = 28,
  UInt64 = 29,
};

// In whose form values are handed over: torch 2.10's, which later ones keep to.
constexpr std::uint64_t built_for = TORCH_TARGET_VERSION;

}  // namespace ptrain::glue
