// Plans by their numbers: what a call names that has been checked and prepared before.
#pragma once

#include <pthread.h>

#include <utility>
#include <vector>

#include "glue.h"

#pragma GCC visibility push(hidden)

namespace ptrain::glue {

// As std::mutex and std::lock_guard, whose header takes a tenth of a second to read.
class Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;
  void lock() { pthread_mutex_lock(&mutex_); }
  void unlock() { pthread_mutex_unlock(&mutex_); }

 private:
  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
};

class Locked {
 public:
  explicit Locked(Mutex& mutex) : mutex_(mutex) { mutex_.lock(); }
  Locked(const Locked&) = delete;
  Locked& operator=(const Locked&) = delete;
  ~Locked() { mutex_.unlock(); }

 private:
  Mutex& mutex_;
};

// What plans are made of.
class Plan {
 public:
  Plan() = default;
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  virtual ~Plan() = default;

 protected:
  Mutex busy;  // one call at a time

 private:
  friend class PlanHold;
  std::int64_t holds_ = 0;
};

// Keeps a plan: another thread may free its number while it is used.
class PlanHold {
 public:
  explicit PlanHold(Plan* plan) : plan_(plan) { __atomic_add_fetch(&plan_->holds_, 1, __ATOMIC_RELAXED); }
  PlanHold(const PlanHold& other) : PlanHold(other.plan_) {}
  PlanHold& operator=(PlanHold other) noexcept {
    std::swap(plan_, other.plan_);
    return *this;
  }
  ~PlanHold() {
    if (__atomic_sub_fetch(&plan_->holds_, 1, __ATOMIC_ACQ_REL) == 0) delete plan_;
  }
  Plan* get() const { return plan_; }

 private:
  Plan* plan_;
};

// The plans of one kind. Numbers count up and are never used twice.
class Plans {
 public:
  // missing: what a message says before the number of a plan that is not there
  explicit Plans(const char* missing) : missing_(missing) {}

  // Takes what was made with `new`.
  std::int64_t keep(Plan* made) {
    const PlanHold plan(made);
    const Locked lock(mutex_);
    plans_.push_back({++last_, plan});
    return last_;
  }

  PlanHold find(std::int64_t number) {
    const Locked lock(mutex_);
    const std::size_t at = place_of(number);
    if (at == plans_.size()) fail({missing_, number});
    return plans_[at].plan;
  }

  void forget(std::int64_t number) {
    std::vector<Numbered> forgotten;  // dies after the lock is given back
    const Locked lock(mutex_);
    const std::size_t at = place_of(number);
    if (at == plans_.size()) return;
    forgotten.push_back(plans_[at]);
    plans_.erase(plans_.begin() + static_cast<std::ptrdiff_t>(at));
  }

 private:
  struct Numbered {
    std::int64_t number;
    PlanHold plan;
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
  Mutex mutex_;
  std::int64_t last_ = 0;
  std::vector<Numbered> plans_;
};

}  // namespace ptrain::glue

#pragma GCC visibility pop
