// What a tensor is and where it lies; whether those that a plan holds are still that; what shares memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "glue.h"

#pragma GCC visibility push(hidden)

namespace ptrain::glue {

// What a tensor is, beside where its memory is.
struct Form {
  std::int32_t type = 0;
  std::int32_t device = 0;
  std::int64_t dimensions = 0;
  const std::int64_t* sizes = nullptr;  // borrowed from the tensor: valid until it changes
  const std::int64_t* strides = nullptr;
};

inline Form form_of(const Tensor& tensor) {
  Form form;
  std::int64_t *sizes = nullptr, *strides = nullptr;
  const AtenTensorHandle handle = tensor.get();
  ask(aoti_torch_get_dtype(handle, &form.type) | aoti_torch_get_device_type(handle, &form.device) |
      aoti_torch_get_dim(handle, &form.dimensions) | aoti_torch_get_sizes(handle, &sizes) |
      aoti_torch_get_strides(handle, &strides));
  form.sizes = sizes;
  form.strides = strides;
  return form;
}

// Where a tensor's memory is now; null if torch cannot say. No handle: null too.
inline void* memory_of(AtenTensorHandle handle) noexcept {
  void* memory = nullptr;
  return handle == nullptr || aoti_torch_get_data_ptr(handle, &memory) ? nullptr : memory;
}

// Whether a tensor is of this type, sizes and strides. Strides that lead nowhere say nothing. It does not throw,
// and may be asked from several threads.
inline bool has_form(AtenTensorHandle handle, const Form& form) noexcept {
  std::int32_t type = 0;
  std::int64_t dimensions = 0, *sizes = nullptr, *strides = nullptr;
  if (aoti_torch_get_dtype(handle, &type) | aoti_torch_get_dim(handle, &dimensions) |
      aoti_torch_get_sizes(handle, &sizes) | aoti_torch_get_strides(handle, &strides)) {
    return false;
  }
  if (type != form.type || dimensions != form.dimensions) return false;
  bool empty = false, in_order = true;
  for (std::int64_t d = 0; d < dimensions; ++d) {
    if (sizes[d] != form.sizes[d]) return false;
    empty |= sizes[d] == 0;
    in_order &= strides[d] == form.strides[d] || sizes[d] == 1;
  }
  return in_order || empty;
}

// Where a tensor's memory ends, seen from where it begins.
struct Extent {
  std::int64_t bytes;  // from the first element to past the last
  bool dense;          // no gaps between
};

inline Extent extent_of(const Form& form, std::int64_t elements) {
  if (elements == 0) return {0, true};
  std::int64_t last = 0;
  for (std::int64_t d = 0; d < form.dimensions; ++d) last += (form.sizes[d] - 1) * form.strides[d];
  const auto width = static_cast<std::int64_t>(aoti_torch_dtype_element_size(form.type));
  return {(last + 1) * width, last + 1 == elements};
}

// Whether the storage reaches as far as the tensor does. `storage.resize_(0)` is how memory is given back
// behind a tensor's back; where the tensor does not begin with its storage, its pointer is then not null.
inline bool storage_holds(AtenTensorHandle handle, std::int64_t reach_bytes, std::int64_t width) noexcept {
  std::int64_t offset = 0, bytes = 0;
  if (reach_bytes == 0) return true;
  if (aoti_torch_get_storage_offset(handle, &offset) | aoti_torch_get_storage_size(handle, &bytes)) {
    return false;
  }
  return offset * width + reach_bytes <= bytes;
}

inline bool has_memory(const Tensor& tensor) {
  const Form form = form_of(tensor);
  std::int64_t elements = 0;
  ask(aoti_torch_get_numel(tensor.get(), &elements));
  const auto width = static_cast<std::int64_t>(aoti_torch_dtype_element_size(form.type));
  return storage_holds(tensor.get(), extent_of(form, elements).bytes, width);
}

// A stretch of memory, and whose it is.
struct Span {
  const char* begin;
  const char* end;
  std::size_t owner;
};

inline void sort_by_address(std::vector<Span>& spans) {
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.owner < b.owner;
  });
}

// Of spans by address, the first that overlaps the one before it; null: none overlaps any other.
inline const Span* first_overlap(const std::vector<Span>& sorted) {
  for (std::size_t i = 1; i < sorted.size(); ++i) {
    if (sorted[i].begin < sorted[i - 1].end) return &sorted[i];
  }
  return nullptr;
}

// Of spans by address that are apart, the first that this stretch of memory overlaps; or null.
inline const Span* overlapped_by(const std::vector<Span>& apart, const char* begin, const char* end) {
  const auto next = std::upper_bound(apart.begin(), apart.end(), begin,
                                     [](const char* at, const Span& span) { return at < span.end; });
  return next != apart.end() && next->begin < end ? &*next : nullptr;
}

// Notes the least of the numbers that several threads come upon.
inline void note_first(std::int64_t* first, std::int64_t i) noexcept {
  std::int64_t known = __atomic_load_n(first, __ATOMIC_RELAXED);
  while (i < known && !__atomic_compare_exchange_n(first, &known, i, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

// Tensors that a plan holds, and the forms they had when it was made.
class Held {
 public:
  explicit Held(std::vector<Tensor> list) : tensors(std::move(list)) {
    for (const Tensor& tensor : tensors) {
      const Form form = form_of(tensor);
      handles.push_back(tensor.get());
      forms.push_back({form.type, form.device, form.dimensions, shapes.size()});
      shapes.insert(shapes.end(), form.sizes, form.sizes + form.dimensions);
      shapes.insert(shapes.end(), form.strides, form.strides + form.dimensions);
    }
  }

  // The form it had; valid as long as this.
  Form form(std::size_t i) const {
    const Known& known = forms[i];
    const std::int64_t* sizes = shapes.data() + known.shape;
    return {known.type, known.device, known.dimensions, sizes, sizes + known.dimensions};
  }

  // Whether it is what it was, and where its memory is now. The device and the storage are asked only where
  // that has moved: memory does not change its device.
  bool as_before(std::size_t i, void** memory) const noexcept {
    const Form before = form(i);
    void* const now = memory_of(handles[i]);
    if (!has_form(handles[i], before)) return false;
    if (now == *memory) return true;
    *memory = now;
    std::int32_t device = 0;
    std::int64_t elements = 1;
    for (std::int64_t d = 0; d < before.dimensions; ++d) elements *= before.sizes[d];
    const auto width = static_cast<std::int64_t>(aoti_torch_dtype_element_size(before.type));
    return !aoti_torch_get_device_type(handles[i], &device) && device == before.device &&
           storage_holds(handles[i], extent_of(before, elements).bytes, width);
  }

  std::size_t size() const { return tensors.size(); }

 private:
  struct Known {
    std::int32_t type, device;
    std::int64_t dimensions;
    std::size_t shape;  // where its sizes, and then its strides, stand in shapes
  };
  std::vector<Tensor> tensors;
  std::vector<AtenTensorHandle> handles;
  std::vector<Known> forms;
  std::vector<std::int64_t> shapes;
};

}  // namespace ptrain::glue

#pragma GCC visibility pop
