// What every op's glue needs: tensors, the library that it is put into, and words for errors.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "tensor.h"

#pragma GCC visibility push(hidden)

namespace ptrain::glue {

// A piece of a message: text, or a number.
class Word {
 public:
  Word(const char* text) : text_(text) {}
  Word(const std::string& text) : text_(text.c_str()) {}
  Word(std::int64_t number) : text_(nullptr), number_(number) {}
  Word(std::uint64_t number) : Word(static_cast<std::int64_t>(number)) {}

  void add_to(std::string& message) const {
    if (text_ != nullptr) {
      message.append(text_);
    } else {
      message.append(std::to_string(number_));
    }
  }

 private:
  const char* text_;
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

[[noreturn]] __attribute__((noinline)) inline void fail_in_torch(const char* what) { fail({"ptrain: torch ", what}); }

// The ops of this namespace, or for `key` their functions, for as long as this lives.
class Library {
 public:
  Library(const char* space, const char* key, void (*fill)(Library&)) {
    if (key == nullptr) {
      aoti_torch_library_init_def(space, __FILE__, __LINE__, &handle_);
    } else {
      aoti_torch_library_init_impl(space, key, __FILE__, __LINE__, &handle_);
    }
    fill(*this);
  }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;
  ~Library() { aoti_torch_delete_library_object(handle_); }

  void def(const char* schema) {
    if (aoti_torch_library_def(handle_, schema)) fail({"ptrain: torch does not take the schema ", schema});
  }
  void impl(const char* name, void (*op)(StableIValue*, std::uint64_t, std::uint64_t)) {
    if (torch_library_impl(handle_, name, op, built_for)) fail({"ptrain: torch does not take the op ", name});
  }

 private:
  TorchLibraryHandle handle_ = nullptr;
};

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

#pragma GCC visibility pop
