// The few pieces of the standard library that the kernels need: its headers take a fifth of a second each to
// read, in every file, and who first uses the kernels waits for that.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

namespace ptrain {

template <typename T>
constexpr T smaller_of(T a, T b) {
  return b < a ? b : a;
}

template <typename T>
constexpr T larger_of(T a, T b) {
  return a < b ? b : a;
}

// `count` values, all of them T{} at first. The destructors of what lies in it are not run.
template <typename T>
class Array {
 public:
  explicit Array(std::int64_t count)
      : values_(static_cast<T*>(::operator new(sizeof(T) * static_cast<std::size_t>(count)))), count_(count) {
    for (std::int64_t i = 0; i < count; ++i) new (values_ + i) T{};
  }
  Array(Array&& other) noexcept : values_(other.values_), count_(other.count_) { other.values_ = nullptr; }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { ::operator delete(values_); }

  T* data() { return values_; }
  T& operator[](std::int64_t i) { return values_[i]; }
  const T& operator[](std::int64_t i) const { return values_[i]; }
  std::int64_t size() const { return count_; }
  const T& back() const { return values_[count_ - 1]; }

 private:
  T* values_;
  std::int64_t count_;
};

// Of ascending values, the place of the first that is above this one; `count` if none is.
inline std::int64_t first_above(const std::int64_t* values, std::int64_t count, std::int64_t value) {
  std::int64_t begin = 0, end = count;
  while (begin < end) {
    const std::int64_t middle = (begin + end) / 2;
    if (values[middle] > value) {
      end = middle;
    } else {
      begin = middle + 1;
    }
  }
  return begin;
}

}  // namespace ptrain
