// The moving average as ops: of two lists of tensors, and of a plan that holds them.
//
// Boxing costs about 0.2 us for each tensor of a list. A plan is made of two lists once; after that a call
// names it by a number, and the plan asks the tensors it holds where their memory is now.
#pragma once

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "../core/ema.h"
#include "boxing.h"
#include "cuda_ema.h"
#include "forms.h"
#include "glue.h"
#include "info.h"
#include "plans.h"

#pragma GCC visibility push(hidden)

namespace ptrain::glue {

inline void define_ema(Library& m) {
  m.def("ema_update_(Tensor(a!)[] shadows, Tensor[] weights, float decay) -> ()");
  m.def("ema_plan(Tensor[] shadows, Tensor[] weights) -> int");
  m.def("ema_update_plan_(int plan, float decay) -> ()");
  // The decay is one float64 on the pairs' device, and read there.
  m.def("ema_update_plan_by_(int plan, Tensor decay) -> ()");
  m.def("ema_free_plan(int plan) -> ()");
}

// `float` and so on: the type that the kernel calls this one, for a shadow and a weight that fit together.
inline bool ema_type(ScalarType shadow, ScalarType weight, WeightType* type) {
  switch (weight) {
    case ScalarType::Float: *type = WeightType::float32; return shadow == ScalarType::Float;
    case ScalarType::BFloat16: *type = WeightType::bfloat16; return shadow == ScalarType::Float;
    case ScalarType::Half: *type = WeightType::float16; return shadow == ScalarType::Float;
    case ScalarType::Double: *type = WeightType::float64; break;
    case ScalarType::Bool:
    case ScalarType::Byte:
    case ScalarType::Char: *type = WeightType::copy8; break;
    case ScalarType::UInt16:
    case ScalarType::Short: *type = WeightType::copy16; break;
    case ScalarType::UInt32:
    case ScalarType::Int: *type = WeightType::copy32; break;
    case ScalarType::UInt64:
    case ScalarType::Long: *type = WeightType::copy64; break;
    default: return false;
  }
  return shadow == weight;
}

// The pairs of a call, checked: nothing has been written when one is refused.
class EmaPairs {
 public:
  EmaPairs(const char* op, const std::vector<Tensor>& shadows, const std::vector<Tensor>& weights) {
    if (shadows.size() != weights.size()) {
      fail({op, ": ", shadows.size(), " shadows for ", weights.size(), " weights"});
    }
    table.reserve(shadows.size());
    layouts.resize(shadows.size());
    for (std::size_t i = 0; i < shadows.size(); ++i) add(op, i, shadows[i], weights[i]);
    check_memory(op);
  }

  // Again, after pointers in `table` have been changed.
  void check_memory(const char* op);

  // decay_on_device: in place of decay, for pairs on a CUDA device.
  void update(const char* op, double decay, const Tensor* decay_on_device = nullptr) const {
#if PTRAIN_CUDA
    if (of_first == aoti_torch_device_type_cuda()) {
      return ema_update_on_cuda(op, table, *first, decay, decay_on_device);
    }
#endif
    if (decay_on_device != nullptr) fail({op, ": the pairs are not on a CUDA device"});
    ema_update(table.data(), starts.data(), static_cast<std::int64_t>(table.size()), decay, torch_for);
  }

  std::vector<EmaTensor> table;     // in the order of the lists; a pair that comes again is empty there
  std::vector<std::int64_t> sizes;  // of all, elements
  std::optional<Tensor> first;      // whose device is that of all

 private:
  void add(const char* op, std::size_t i, const Tensor& shadow, const Tensor& weight);

  std::int32_t of_first = -1;  // the type of its device
  std::vector<std::int64_t> starts;
  std::vector<std::optional<EmaLayout>> layouts;  // in the order of the lists
  std::vector<Extent> shadow_extents, weight_extents;
};

inline void EmaPairs::add(const char* op, std::size_t i, const Tensor& shadow, const Tensor& weight) {
  const Form of_shadow = form_of(shadow), of_weight = form_of(weight);
  const bool on_cuda = has_cuda && of_shadow.device == aoti_torch_device_type_cuda();
  if (!on_cuda && of_shadow.device != aoti_torch_device_type_cpu()) {
    fail({op, ": shadow ", i, " is not on the CPU"});
  }
  if (!first.has_value()) first = shadow;
  const auto elsewhere = [&](const Tensor& tensor, const Form& form) {
    if (form.device != of_first) return true;
    return on_cuda && tensor.get_device_index() != first->get_device_index();
  };
  if (i == 0) of_first = of_shadow.device;
  if (elsewhere(shadow, of_shadow) || elsewhere(weight, of_weight)) {
    fail({op, elsewhere(shadow, of_shadow) ? ": shadow " : ": weight ", i, " is on another device than shadow 0"});
  }
  if (of_shadow.dimensions != of_weight.dimensions ||
      !std::equal(of_shadow.sizes, of_shadow.sizes + of_shadow.dimensions, of_weight.sizes)) {
    fail({op, ": shadow ", i, " has shape ", shape_of(shadow), ", its weight has shape ", shape_of(weight)});
  }
  EmaTensor tensor{nullptr, nullptr, 1, WeightType::float32, nullptr};
  const ScalarType shadow_type = shadow.scalar_type(), type = weight.scalar_type();
  if (!ema_type(shadow_type, type, &tensor.type)) {
    fail({op, ": shadow ", i, " is ", name_of(shadow_type), " for a weight of ", name_of(type)});
  }
  for (std::int64_t d = 0; d < of_shadow.dimensions; ++d) tensor.size *= of_shadow.sizes[d];
  if (tensor.size > 0) {
    const EmaLayout layout =
        ema_layout(of_shadow.sizes, of_shadow.strides, of_weight.strides, of_shadow.dimensions);
    if (overlaps_itself(layout)) {
      fail({op, ": shadow ", i, " has elements that share their memory: make it .contiguous()"});
    }
    if (!layout.empty() && on_cuda) {
      fail({op, ": shadow ", i, " does not lie in memory as its weight does, without gaps"});
    }
    if (!layout.empty()) {
      layouts[i] = layout;
      tensor.layout = &*layouts[i];
    }
    if (!has_memory(shadow) || !has_memory(weight)) {
      fail({op, has_memory(shadow) ? ": weight " : ": shadow ", i, " has no memory"});
    }
    tensor.shadow = shadow.mutable_data_ptr();
    tensor.weight = weight.const_data_ptr();
  }
  shadow_extents.push_back(extent_of(of_shadow, tensor.size));
  weight_extents.push_back(extent_of(of_weight, tensor.size));
  table.push_back(tensor);
  sizes.push_back(tensor.size);
}

// A pair that comes again (tied weights) is updated once. Two shadows that begin at the same place, and
// any overlap of tensors without gaps, are refused. Of others (two columns of one matrix, say) it is not
// known without trying all elements, and nothing worse can come of it than a value averaged twice.
inline void EmaPairs::check_memory(const char* op) {
  std::vector<Span> spans;
  spans.reserve(table.size());
  for (std::size_t i = 0; i < table.size(); ++i) {
    const auto* begin = static_cast<const char*>(table[i].shadow);
    table[i].size = sizes[i];
    if (sizes[i] > 0) spans.push_back({begin, begin + shadow_extents[i].bytes, i});
  }
  sort_by_address(spans);
  std::vector<Span> dense;  // the shadows without gaps, by address, each once
  dense.reserve(spans.size());
  const Span* before = nullptr;
  for (const Span& span : spans) {
    EmaTensor& tensor = table[span.owner];
    if (before != nullptr && before->begin == span.begin) {
      const EmaTensor& first = table[before->owner];
      if (first.weight != tensor.weight || first.type != tensor.type || first.size != tensor.size) {
        fail({op, ": shadow ", span.owner, " was already given, for another weight"});
      }
      tensor.size = 0;
      continue;
    }
    before = &span;
    if (shadow_extents[span.owner].dense) dense.push_back(span);
  }
  if (const Span* second = first_overlap(dense)) {
    fail({op, ": shadow ", second->owner, " overlaps shadow ", second[-1].owner});
  }
  for (std::size_t i = 0; i < table.size(); ++i) {
    if (table[i].size == 0) continue;
    const auto* begin = static_cast<const char*>(table[i].weight);
    if (table[i].shadow == begin) {
      fail({op, ": shadow ", i, " shares its memory with its weight"});
    }
    if (!weight_extents[i].dense) continue;
    if (const Span* shadow = overlapped_by(dense, begin, begin + weight_extents[i].bytes)) {
      fail({op, ": weight ", i, " overlaps shadow ", shadow->owner});
    }
  }
  starts = ema_starts(table.data(), static_cast<std::int64_t>(table.size()));
}

inline void check_decay(const char* op, double decay) {
  if (!(decay >= 0.0 && decay <= 1.0)) {  // NaN is neither
    fail({op, ": decay is ", std::to_string(decay), "; it must be between 0 and 1"});
  }
}

inline void ema_update_op(Stack& stack) {
  const std::vector<Tensor> shadows = stack.tensors(), weights = stack.tensors();
  const double decay = stack.number();
  check_decay("ema_update_", decay);
  EmaPairs("ema_update_", shadows, weights).update("ema_update_", decay);
}

class EmaPlan : public Plan {
 public:
  EmaPlan(std::vector<Tensor> shadow_list, std::vector<Tensor> weight_list)
      : pairs("ema_plan", shadow_list, weight_list),
        shadows(std::move(shadow_list)),
        weights(std::move(weight_list)) {}

  void update(double decay, const Tensor* decay_on_device = nullptr) {
    const Locked one_at_a_time(busy);
    refresh();
    pairs.update("ema_update_plan_", decay, decay_on_device);
  }

 private:
  static constexpr std::int64_t none = INT64_MAX;

  // Reads the pointers again. Two thousand pairs take 40 us on one core, so many are shared out.
  void refresh() {
    first_changed = none;
    const auto count = static_cast<std::int64_t>(shadows.size());
    const auto some = [](std::int64_t begin, std::int64_t end, void* plan) {
      static_cast<EmaPlan*>(plan)->refresh(begin, end);
    };
    if (count > 512) {
      torch_for(count, 256, some, this);
    } else {
      refresh(0, count);
    }
    if (first_changed != none) {
      const auto i = static_cast<std::size_t>(first_changed);
      void* memory = nullptr;  // no tensor's: its device is asked
      const bool is_shadow = !shadows.as_before(i, &memory) || memory == nullptr;
      fail({"ema_update_plan_: ", is_shadow ? "shadow " : "weight ", i,
            " has lost its memory, or got another shape, layout, dtype or device since the plan was made"});
    }
    if (moved) pairs.check_memory("ema_update_plan_");
    moved = false;  // not before: what has been refused once is looked at again
  }

  // Called from several threads: it must not throw.
  void refresh(std::int64_t begin, std::int64_t end) noexcept;

  EmaPairs pairs;
  Held shadows, weights;
  std::int64_t first_changed = none;  // by the threads: atomically, as the next
  bool moved = false;
};

inline void EmaPlan::refresh(std::int64_t begin, std::int64_t end) noexcept {
  for (std::int64_t i = begin; i < end; ++i) {
    EmaTensor& tensor = pairs.table[i];
    void *shadow = tensor.shadow, *weight = const_cast<void*>(tensor.weight);
    bool right = shadows.as_before(i, &shadow) && weights.as_before(i, &weight);
    if (pairs.sizes[i] > 0 && (shadow == nullptr || weight == nullptr)) right = false;
    if (!right) {
      note_first(&first_changed, i);
      return;
    }
    if (tensor.shadow == shadow && tensor.weight == weight) continue;
    tensor.shadow = shadow;
    tensor.weight = weight;
    __atomic_store_n(&moved, true, __ATOMIC_RELAXED);
  }
}

// Never destroyed: its tensors must not outlive torch at the end of the process.
inline Plans& ema_plans() {
  static Plans* plans = new Plans("there is no average's plan ");
  return *plans;
}

inline void ema_plan_op(Stack& stack) {
  std::vector<Tensor> shadows = stack.tensors(), weights = stack.tensors();
  stack.give(ema_plans().keep(new EmaPlan(std::move(shadows), std::move(weights))));
}

inline void update_plan(std::int64_t number, double decay, const Tensor* decay_on_device) {
  const PlanHold plan = ema_plans().find(number);
  static_cast<EmaPlan*>(plan.get())->update(decay, decay_on_device);
}

inline void ema_update_plan_op(Stack& stack) {
  const std::int64_t number = stack.integer();
  const double decay = stack.number();
  check_decay("ema_update_plan_", decay);
  update_plan(number, decay, nullptr);
}

inline void ema_update_plan_by_op(Stack& stack) {
  const std::int64_t number = stack.integer();
  const Tensor decay = stack.tensor();
  if (decay.scalar_type() != ScalarType::Double || decay.numel() != 1) {
    fail({"ema_update_plan_by_: decay has shape ", shape_of(decay), "; it must be one float64"});
  }
  update_plan(number, 0.0, &decay);
}

inline void ema_free_plan_op(Stack& stack) { ema_plans().forget(stack.integer()); }

inline void implement_ema(Library& m) {
  m.impl("ema_update_", boxed<ema_update_op>);
  m.impl("ema_plan", boxed<ema_plan_op>);
  m.impl("ema_update_plan_by_", boxed<ema_update_plan_by_op>);
}

// Without a tensor among their arguments: of every device.
inline void implement_ema_plans(Library& m) {
  m.impl("ema_update_plan_", boxed<ema_update_plan_op>);
  m.impl("ema_free_plan", boxed<ema_free_plan_op>);
}

}  // namespace ptrain::glue

#pragma GCC visibility pop
