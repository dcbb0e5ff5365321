// How an op takes its arguments from torch's stack, and leaves its results there.
//
// torch's TORCH_BOX makes templates of every signature anew; with twenty ops that took longer to compile than
// all the kernels. Here each kind of value has one function.
#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "glue.h"

#pragma GCC visibility push(hidden)  // as torch has its Tensor

namespace ptrain::glue {

using MaybeTensor = std::optional<Tensor>;

// The arguments of one call, taken one after the other in the schema's order; each belongs to who takes it.
// All must be taken before a result is given, as these lie in the same places.
class Stack {
 public:
  Stack(StableIValue* values, std::uint64_t arguments, std::uint64_t results)
      : values_(values), arguments_(arguments), results_(results) {}

  Tensor tensor() { return Tensor(torch::stable::detail::to<AtenTensorHandle>(next())); }
  MaybeTensor maybe_tensor();
  std::vector<Tensor> tensors();
  std::vector<std::int64_t> integers();
  std::string text();
  double number() { return torch::stable::detail::to<double>(next()); }
  std::int64_t integer() { return torch::stable::detail::to<std::int64_t>(next()); }
  bool flag() { return torch::stable::detail::to<bool>(next()); }

  void give(const Tensor& result) { give(torch::stable::detail::from(result)); }
  void give(std::initializer_list<const Tensor*> results) {
    for (const Tensor* result : results) give(*result);
  }
  void give(const char* result) { give(torch::stable::detail::from(std::string(result))); }
  void give(std::int64_t result) { give(torch::stable::detail::from(result)); }
  void give(bool result) { give(torch::stable::detail::from(result)); }

  // That the op and its schema agree.
  void check() const {
    if (taken_ != arguments_ || given_ != results_) fail_to_agree();
  }

 private:
  StableIValue next() {
    if (taken_ == arguments_) fail_to_agree();
    return values_[taken_++];
  }
  void give(StableIValue value) {
    if (taken_ != arguments_ || given_ == results_) fail_to_agree();
    values_[given_++] = value;
  }
  [[noreturn]] void fail_to_agree() const;

  StableIValue* values_;
  std::uint64_t arguments_, results_;
  std::uint64_t taken_ = 0, given_ = 0;
};

inline MaybeTensor Stack::maybe_tensor() { return torch::stable::detail::to<MaybeTensor>(next()); }

inline std::vector<Tensor> Stack::tensors() {
  return torch::stable::detail::to<std::vector<Tensor>>(next());
}

inline std::vector<std::int64_t> Stack::integers() {
  return torch::stable::detail::to<std::vector<std::int64_t>>(next());
}

inline std::string Stack::text() { return torch::stable::detail::to<std::string>(next()); }

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
