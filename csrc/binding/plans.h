// Plans by their numbers: what a call names that has been checked and prepared before.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "glue.h"

#pragma GCC visibility push(hidden)

namespace ptrain::glue {

// What plans are made of.
class Plan {
 public:
  virtual ~Plan() = default;

 protected:
  std::mutex busy;  // one call at a time
};

// The plans of one kind. Numbers count up and are never used twice.
class Plans {
 public:
  // missing: what a message says before the number of a plan that is not there
  explicit Plans(const char* missing) : missing_(missing) {}

  std::int64_t keep(std::shared_ptr<Plan> plan) {
    const std::lock_guard<std::mutex> lock(mutex_);
    plans_.push_back({++last_, std::move(plan)});
    return last_;
  }

  std::shared_ptr<Plan> find(std::int64_t number) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const std::size_t at = place_of(number);
    if (at == plans_.size()) fail({missing_, number});
    return plans_[at].plan;
  }

  void forget(std::int64_t number) {
    std::shared_ptr<Plan> plan;  // dies after the lock is given back
    const std::lock_guard<std::mutex> lock(mutex_);
    const std::size_t at = place_of(number);
    if (at == plans_.size()) return;
    plan = std::move(plans_[at].plan);
    plans_.erase(plans_.begin() + static_cast<std::ptrdiff_t>(at));
  }

 private:
  struct Numbered {
    std::int64_t number;
    std::shared_ptr<Plan> plan;
  };

  // By halving, as numbers ascend; past the end if there is none.
  std::size_t place_of(std::int64_t number) const {
    std::size_t begin = 0, end = plans_.size();
    while (begin < end) {
      const std::size_t middle = (begin + end) / 2;
      if (plans_[middle].number == number) return middle;
      if (plans_[middle].number < number) {
        begin = middle + 1;
      } else {
        end = middle;
      }
    }
    return plans_.size();
  }

  const char* missing_;
  std::mutex mutex_;
  std::int64_t last_ = 0;
  std::vector<Numbered> plans_;
};

}  // namespace ptrain::glue

#pragma GCC visibility pop
