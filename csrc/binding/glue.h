// What every op's glue needs of torch's stable ABI: devices, types, memory, threads, and words for errors.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "../core/parallel.h"

namespace ptrain::glue {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using torch::stable::detail::StableLibrary;

// torch's own threads, as the kernels ask for them: no second pool beside it.
inline void torch_for(std::int64_t count, std::int64_t grain, RangeTask task, void* context) {
  if (count <= 0) return;
  if (torch_parallel_for(0, count, grain, task, context) != 0) {
    throw std::runtime_error("ptrain: torch's parallel_for failed");
  }
}

// A piece of a message: text, or a number.
class Word {
 public:
  Word(const char* text) : text_(text), size_(std::strlen(text)) {}
  Word(const std::string& text) : text_(text.data()), size_(text.size()) {}
  Word(std::int64_t number) : text_(nullptr), number_(number) {}
  Word(std::uint64_t number) : Word(static_cast<std::int64_t>(number)) {}

  void add_to(std::string& message) const {
    if (text_ != nullptr) {
      message.append(text_, size_);
    } else {
      message.append(std::to_string(number_));
    }
  }

 private:
  const char* text_;
  std::size_t size_ = 0;
  std::int64_t number_ = 0;
};

// Texts are put together here, out of line: sums of strings where they are thrown were a third of what it took
// to compile the glue.
__attribute__((noinline)) inline std::string joined(std::initializer_list<Word> words) {
  std::string text;
  for (const Word& word : words) word.add_to(text);
  return text;
}

[[noreturn]] __attribute__((noinline)) inline void fail(std::initializer_list<Word> words) {
  throw std::runtime_error(joined(words));
}

[[noreturn]] inline void fail(const char* message) { fail({message}); }

// What a message calls a type: the name that Python prints.
inline const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "torch.float32";
    case ScalarType::Double: return "torch.float64";
    case ScalarType::BFloat16: return "torch.bfloat16";
    case ScalarType::Half: return "torch.float16";
    case ScalarType::Long: return "torch.int64";
    case ScalarType::Int: return "torch.int32";
    case ScalarType::Short: return "torch.int16";
    case ScalarType::Char: return "torch.int8";
    case ScalarType::Byte: return "torch.uint8";
    case ScalarType::Bool: return "torch.bool";
    default: return "another type";
  }
}

inline std::string shape_of(const Tensor& tensor) {
  std::string text = "(";
  for (std::int64_t i = 0; i < tensor.dim(); ++i) {
    if (i > 0) text.append(", ");
    Word(tensor.size(i)).add_to(text);
  }
  return text.append(tensor.dim() == 1 ? ",)" : ")");
}

}  // namespace ptrain::glue
