// How an op takes its arguments from torch's stack, and leaves its results there.
//
// A value is eight bytes: a number, or a handle that belongs to who takes it. torch's TORCH_BOX makes templates
// of every signature anew; with twenty ops that took longer to compile than all the kernels.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

#include "glue.h"

#pragma GCC visibility push(hidden)

namespace ptrain::glue {

// The arguments of one call, taken one after the other in the schema's order; each belongs to who takes it.
// All must be taken before a result is given, as these lie in the same places.
class Stack {
 public:
  Stack(StableIValue* values, std::uint64_t arguments, std::uint64_t results)
      : values_(values), arguments_(arguments), results_(results) {}

  Tensor tensor() { return Tensor(handle<AtenTensorHandle>(next())); }
  MaybeTensor maybe_tensor();
  std::vector<Tensor> tensors();
  std::vector<std::int64_t> integers();
  std::string text();
  double number();
  std::int64_t integer() { return static_cast<std::int64_t>(next()); }
  bool flag() { return (next() & 0xff) != 0; }

  void give(const Tensor& result) { put(reinterpret_cast<StableIValue>(result.another())); }
  void give(std::initializer_list<const Tensor*> results) {
    for (const Tensor* result : results) give(*result);
  }
  void give(const char* result);
  void give(std::int64_t result) { put(static_cast<StableIValue>(result)); }
  void give(bool result) { put(result ? 1 : 0); }

  // That the op and its schema agree.
  void check() const {
    if (taken_ != arguments_ || given_ != results_) fail_to_agree();
  }

 private:
  StableIValue next() {
    if (taken_ == arguments_) fail_to_agree();
    return values_[taken_++];
  }
  void put(StableIValue value) {
    if (taken_ != arguments_ || given_ == results_) fail_to_agree();
    values_[given_++] = value;
  }
  template <typename Handle>
  static Handle handle(StableIValue value) {
    return reinterpret_cast<Handle>(value);
  }
  [[noreturn]] void fail_to_agree() const;

  StableIValue* values_;
  std::uint64_t arguments_, results_;
  std::uint64_t taken_ = 0, given_ = 0;
};

inline void ask_of_call(AOTITorchError error) {
  if (error != 0) fail_in_torch("could not say what an op was called with");
}

// A list of torch's, given back at the end.
class TakenList {
 public:
  explicit TakenList(StableIValue value) : handle_(reinterpret_cast<StableListHandle>(value)) {}
  TakenList(const TakenList&) = delete;
  TakenList& operator=(const TakenList&) = delete;
  ~TakenList() { torch_delete_list(handle_); }

  std::size_t size() const {
    std::size_t size = 0;
    ask_of_call(torch_list_size(handle_, &size));
    return size;
  }
  StableIValue operator[](std::size_t i) const {
    StableIValue value = 0;
    ask_of_call(torch_list_get_item(handle_, i, &value));
    return value;
  }

 private:
  StableListHandle handle_;
};

inline double Stack::number() {
  const StableIValue value = next();
  double number;
  std::memcpy(&number, &value, sizeof number);
  return number;
}

// What may be missing comes as the address of a value, made with `new`.
inline MaybeTensor Stack::maybe_tensor() {
  auto* const value = handle<StableIValue*>(next());
  if (value == nullptr) return {};
  const StableIValue tensor = *value;
  delete value;
  return Tensor(handle<AtenTensorHandle>(tensor));
}

inline std::vector<Tensor> Stack::tensors() {
  const TakenList list(next());
  const std::size_t size = list.size();
  std::vector<Tensor> tensors;
  tensors.reserve(size);
  for (std::size_t i = 0; i < size; ++i) tensors.emplace_back(handle<AtenTensorHandle>(list[i]));
  return tensors;
}

inline std::vector<std::int64_t> Stack::integers() {
  const TakenList list(next());
  std::vector<std::int64_t> integers(list.size());
  for (std::size_t i = 0; i < integers.size(); ++i) integers[i] = static_cast<std::int64_t>(list[i]);
  return integers;
}

inline std::string Stack::text() {
  const auto given = handle<StringHandle>(next());
  std::size_t length = 0;
  const char* data = nullptr;
  ask_of_call(torch_string_length(given, &length) | torch_string_c_str(given, &data));
  std::string text(data, length);
  torch_delete_string(given);
  return text;
}

inline void Stack::give(const char* result) {
  StringHandle made = nullptr;
  ask_of_call(torch_new_string_handle(result, std::strlen(result), &made));
  put(reinterpret_cast<StableIValue>(made));
}

inline void Stack::fail_to_agree() const {
  fail({"ptrain: an op with ", arguments_, " arguments and ", results_, " results does not follow its schema"});
}

// The form in which torch calls an op.
template <void (*op)(Stack&)>
void boxed(StableIValue* values, std::uint64_t arguments, std::uint64_t results) {
  Stack stack(values, arguments, results);
  op(stack);
  stack.check();
}

}  // namespace ptrain::glue

#pragma GCC visibility pop
