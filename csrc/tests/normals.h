// Normally distributed numbers, cheap even where nothing is optimized and every access is checked: a few
// thousand, drawn once and given again and again.
#pragma once

#include <cstddef>
#include <random>
#include <vector>

class Normals {
 public:
  double operator()() {
    at_ = at_ + 1 < pool().size() ? at_ + 1 : 0;
    return pool()[at_];
  }

 private:
  std::size_t at_ = 0;

  static const std::vector<double>& pool() {
    static const std::vector<double> numbers = [] {
      std::mt19937 random(7);
      std::normal_distribution<double> normal;
      std::vector<double> drawn(8191);  // a prime, so that no two tensors of a power of two begin alike
      for (double& number : drawn) number = normal(random);
      return drawn;
    }();
    return numbers;
  }
};
