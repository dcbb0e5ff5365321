// The gradient norm and the fused step as ops: of lists of tensors, and of plans that keep their handles.
#pragma once

#include <cstring>
#include <utility>
#include <vector>

#include "../core/norm.h"
#include "../core/step.h"
#include "boxing.h"
#include "cuda_step.h"
#include "forms.h"
#include "glue.h"
#include "plans.h"

#pragma GCC visibility push(hidden)

namespace ptrain::glue {

inline void define_step(Library& m) {
  m.def("grad_norm(Tensor[] gradients) -> Tensor");
  // `groups` says which row of hyper each tensor takes; a row is (lr, beta1, beta2, eps, weight decay,
  // decay of the average), float64. `shadows` is empty, or as long as params, and then a shadow without
  // elements stands for none. A norm that is not finite: nothing is written.
  m.def(
      "fused_step_(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, "
      "Tensor(d!)[] exp_avg_sqs, Tensor(e!)[] steps, Tensor(f!)[] shadows, int[] groups, Tensor hyper, "
      "Tensor? norm, float max_norm, bool zero_grads) -> ()");
  // A tensor without a state yet has an exp_avg, an exp_avg_sq and a step without elements.
  m.def(
      "step_plan(Tensor[] params, Tensor[] exp_avgs, Tensor[] exp_avg_sqs, Tensor[] steps, "
      "Tensor[] shadows, int[] groups) -> int");
  // The gradients of params[places[0]], params[places[1]], ...; empty places: of all of them.
  m.def("step_set_gradients(int plan, Tensor[] gradients, int[] places) -> ()");
  m.def("step_norm(int plan) -> Tensor");
  // Fails where step_apply_ would: for a caller with several plans, of which none must be applied then.
  m.def("step_check(int plan, bool zero_grads) -> ()");
  m.def(
      "step_apply_(int plan, Tensor hyper, Tensor? norm, float max_norm, bool average, bool zero_grads) "
      "-> ()");
  m.def("step_free_plan(int plan) -> ()");
}

constexpr std::int64_t hyper_columns = 6;

// What an error calls a tensor: "exp_avgs[3]".
struct Place {
  const char* op;
  const char* list;
  std::size_t index;
};

[[noreturn]] __attribute__((noinline)) inline void refuse(const Place& at, std::initializer_list<Word> words) {
  fail({at.op, ": ", at.list, "[", at.index, "] ", joined(words)});
}

[[noreturn]] inline void refuse(const Place& at, const char* why) { refuse(at, {why}); }

inline FloatType float_type(const Tensor& tensor, const Place& at) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return FloatType::float32;
    case ScalarType::BFloat16: return FloatType::bfloat16;
    case ScalarType::Half: return FloatType::float16;
    case ScalarType::Double: return FloatType::float64;
    default:
      refuse(at, {"is ", name_of(tensor.scalar_type()), "; float32, float64, bfloat16 and float16 can be used"});
  }
}

inline void require_plain(const Tensor& tensor, const Place& at) {
  if (!tensor.is_strided()) refuse(at, "is sparse; make it dense");
  if (!has_memory(tensor)) refuse(at, "has no memory: its storage was made smaller than it is");
}

// All elements in one block of memory without gaps, in any order of dimensions.
inline bool is_dense(const Tensor& tensor) {
  if (tensor.numel() == 0 || tensor.is_contiguous()) return true;
  // From the closest elements outwards: the next dimension begins where the last one ended.
  const std::int64_t dimensions = tensor.dim(), *sizes = tensor.sizes(), *strides = tensor.strides();
  std::int64_t reached = 1;
  for (std::int64_t d = 0; d < dimensions;) {
    const bool next = sizes[d] > 1 && strides[d] == reached;
    reached *= next ? sizes[d] : 1;
    d = next ? 0 : d + 1;
  }
  return reached == tensor.numel();
}

inline bool same_shape(const Tensor& one, const Tensor& other) {
  if (one.dim() != other.dim()) return false;
  for (std::int64_t d = 0; d < one.dim(); ++d) {
    if (one.size(d) != other.size(d)) return false;
  }
  return true;
}

// Whether the elements of two dense tensors of the same shape lie in the same order.
inline bool same_order(const Tensor& one, const Tensor& other) {
  if (one.numel() < 2 || (one.is_contiguous() && other.is_contiguous())) return true;
  for (std::int64_t d = 0; d < one.dim(); ++d) {
    if (one.size(d) > 1 && one.stride(d) != other.stride(d)) return false;
  }
  return true;
}

inline void require_same_device(const Tensor& tensor, const Tensor& param, const Place& at) {
  if (!same_device(tensor, param)) refuse(at, "is on another device than its parameter");
}

// A part of the parameter's step that lies element for element beside it.
inline void require_beside(const Tensor& tensor, ScalarType type, const Tensor& param, const Place& at) {
  require_plain(tensor, at);
  require_same_device(tensor, param, at);
  if (tensor.scalar_type() != type) {
    refuse(at, {"is ", name_of(tensor.scalar_type()), "; for a parameter of ", name_of(param.scalar_type()),
                " it must be ", name_of(type)});
  }
  if (!same_shape(tensor, param)) {
    refuse(at, {"has shape ", shape_of(tensor), ", its parameter ", shape_of(param)});
  }
}

inline void require_beside_in_order(const Tensor& tensor, ScalarType type, const Tensor& param,
                                    const Place& at) {
  require_beside(tensor, type, param, at);
  if (!is_dense(tensor) || !same_order(tensor, param)) {
    refuse(at, "has other strides than its parameter; make it torch.empty_like(parameter)");
  }
}

inline void require_step(const Tensor& step, const Tensor& param, const Place& at) {
  require_plain(step, at);
  require_same_device(step, param, at);
  if (step.scalar_type() != ScalarType::Float || step.numel() != 1) {
    refuse(at, {"has shape ", shape_of(step), " and is ", name_of(step.scalar_type()), "; it must be one float32"});
  }
}

inline ScalarType state_type(const Tensor& param) {
  return param.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

struct StepLists {
  std::vector<Tensor> params;
  std::vector<Tensor> exp_avgs;
  std::vector<Tensor> exp_avg_sqs;
  std::vector<Tensor> steps;
  std::vector<Tensor> shadows;
  std::vector<std::int64_t> groups;

  // All but the parameters, as the schemas have them.
  void take_states(Stack& stack) {
    exp_avgs = stack.tensors();
    exp_avg_sqs = stack.tensors();
    steps = stack.tensors();
    shadows = stack.tensors();
    groups = stack.integers();
  }

  bool has_state(std::size_t i) const { return steps[i].numel() != 0; }
  bool has_shadow(std::size_t i) const {
    return !shadows.empty() && shadows[i].numel() == params[i].numel();
  }
};

inline void require_length(const char* op, const char* list, std::size_t size, std::size_t wanted) {
  if (size != wanted) {
    fail({op, ": ", size, " ", list, " for ", wanted, " params"});
  }
}

// Checks tensor i of the lists, all but its gradient. Nothing has been written when this fails.
inline void check_step_tensor(const char* op, const StepLists& lists, std::size_t i) {
  const Tensor& param = lists.params[i];
  require_plain(param, {op, "params", i});
  float_type(param, {op, "params", i});
  require_same_device(param, lists.params[0], {op, "params", i});
  if (!is_dense(param)) refuse({op, "params", i}, "has gaps or overlaps in its memory");
  if (lists.groups[i] < 0 || lists.groups[i] > INT32_MAX) {
    refuse({op, "groups", i}, "is negative or too large");
  }
  if (lists.has_state(i)) {
    require_step(lists.steps[i], param, {op, "steps", i});
    require_beside_in_order(lists.exp_avgs[i], state_type(param), param, {op, "exp_avgs", i});
    require_beside_in_order(lists.exp_avg_sqs[i], state_type(param), param, {op, "exp_avg_sqs", i});
  }
  if (lists.shadows.empty() || lists.shadows[i].numel() == 0) return;
  const Tensor& shadow = lists.shadows[i];
  require_beside_in_order(shadow, state_type(param), param, {op, "shadows", i});
}

inline void check_step_lists(const char* op, const StepLists& lists) {
  const std::size_t count = lists.params.size();
  require_length(op, "exp_avgs", lists.exp_avgs.size(), count);
  require_length(op, "exp_avg_sqs", lists.exp_avg_sqs.size(), count);
  require_length(op, "steps", lists.steps.size(), count);
  require_length(op, "groups", lists.groups.size(), count);
  if (!lists.shadows.empty()) require_length(op, "shadows", lists.shadows.size(), count);
  for (std::size_t i = 0; i < count; ++i) check_step_tensor(op, lists, i);
}

inline void check_hyper(const char* op, const Tensor& hyper) {
  if (hyper.scalar_type() != ScalarType::Double || hyper.dim() != 2 ||
      hyper.size(1) != hyper_columns || !hyper.is_contiguous()) {
    fail({op, ": hyper has shape ", shape_of(hyper), " and is ", name_of(hyper.scalar_type()),
          "; it must be a contiguous float64 tensor of (groups, 6)"});
  }
}

// The settings of all groups, read on the host.
inline std::vector<StepGroup> step_groups(const char* op, const Tensor& hyper) {
  if (!hyper.is_cpu()) fail({op, ": hyper is not on the CPU, as the parameters are"});
  const double* row = static_cast<const double*>(hyper.const_data_ptr());
  std::vector<StepGroup> groups;
  for (std::int64_t g = 0; g < hyper.size(0); ++g, row += hyper_columns) {
    groups.push_back({row[0], row[1], row[2], row[3], row[4], row[5]});
  }
  return groups;
}

inline double read_norm(const char* op, const Tensor& norm) {
  if (norm.scalar_type() != ScalarType::Double || norm.numel() != 1 || !norm.is_cpu()) {
    fail({op, ": norm has shape ", shape_of(norm), " and is ", name_of(norm.scalar_type()),
          "; it must be one float64 on the parameters' device"});
  }
  return *static_cast<const double*>(norm.const_data_ptr());
}

// The gradient as it lies beside the parameter: itself, or a copy where its strides differ.
inline Tensor laid_beside(const Tensor& gradient, const Tensor& param) {
  if (is_dense(gradient) && same_order(gradient, param)) return gradient;
  Tensor copy = empty_like(param);
  copy_into(copy, gradient);
  return copy;
}

inline void check_gradient(const char* op, const Tensor& gradient, const Tensor& param, std::size_t i) {
  require_beside(gradient, param.scalar_type(), param, {op, "grads", i});
}

inline Tensor norm_tensor(double value, const Tensor* beside) {
  Tensor norm = beside != nullptr ? new_beside(*beside, {}, ScalarType::Double) : new_tensor({}, ScalarType::Double);
  *static_cast<double*>(norm.mutable_data_ptr()) = value;
  return norm;
}

// On whichever device they are: that of `beside`.
inline Tensor norm_of(const std::vector<NormTensor>& tensors, const Tensor* beside) {
#if PTRAIN_CUDA
  if (beside != nullptr && beside->is_cuda()) return norm_on_cuda("grad_norm", tensors, *beside);
#endif
  const double sum = sum_of_squares(tensors.data(), static_cast<std::int64_t>(tensors.size()), torch_for);
  return norm_tensor(__builtin_sqrt(sum), beside);
}

inline void grad_norm_op(Stack& stack) {
  const std::vector<Tensor> gradients = stack.tensors();
  std::vector<NormTensor> tensors;
  tensors.reserve(gradients.size());
  std::vector<Tensor> copies;
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    const Place at{"grad_norm", "gradients", i};
    require_plain(gradients[i], at);
    const FloatType type = float_type(gradients[i], at);
    if (!same_device(gradients[i], gradients[0])) refuse(at, "is on another device than the first");
    if (!is_dense(gradients[i])) copies.push_back(contiguous(gradients[i]));
    const Tensor& dense = is_dense(gradients[i]) ? gradients[i] : copies.back();
    tensors.push_back({dense.const_data_ptr(), dense.numel(), type});
  }
  stack.give(norm_of(tensors, gradients.empty() ? nullptr : &gradients[0]));
}

inline void require_groups(const char* op, const StepLists& lists, std::size_t groups) {
  for (std::size_t i = 0; i < lists.groups.size(); ++i) {
    if (lists.groups[i] >= static_cast<std::int64_t>(groups)) {
      refuse({op, "groups", i}, {"is ", lists.groups[i], ", but hyper has ", groups, " rows"});
    }
  }
}

// Where a gradient lies. One without elements has no memory, and must not be taken for none at all.
inline void* gradient_memory(void* memory, void* step) { return memory == nullptr ? step : memory; }

inline StepTensor step_tensor(const StepLists& lists, std::size_t i, const Tensor* gradient) {
  const bool state = lists.has_state(i);
  const Tensor& param = lists.params[i];
  return {
      param.mutable_data_ptr(),
      gradient == nullptr
          ? nullptr
          : gradient_memory(gradient->mutable_data_ptr(), lists.steps[i].mutable_data_ptr()),
      state ? lists.exp_avgs[i].mutable_data_ptr() : nullptr,
      state ? lists.exp_avg_sqs[i].mutable_data_ptr() : nullptr,
      state ? static_cast<float*>(lists.steps[i].mutable_data_ptr()) : nullptr,
      lists.has_shadow(i) ? lists.shadows[i].mutable_data_ptr() : nullptr,
      param.numel(),
      float_type(param, {"fused_step_", "params", i}),
      static_cast<std::int32_t>(lists.groups[i]),
  };
}

// What a step writes besides the gradients, by address.
class StepMemory {
 public:
  // Fails if two of the parts share memory: they would be stepped twice, and by two threads at once.
  StepMemory(const char* op, const std::vector<StepTensor>& tensors) {
    spans.reserve(tensors.size() * parts);
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      const StepTensor& tensor = tensors[i];
      const std::int64_t wide = tensor.size * (tensor.type == FloatType::float64 ? 8 : 4);
      add(tensor.weight, tensor.size * bytes_of(tensor.type), i * parts);
      add(tensor.exp_avg, wide, i * parts + 1);
      add(tensor.exp_avg_sq, wide, i * parts + 2);
      add(tensor.step, 4, i * parts + 3);
      add(tensor.shadow, wide, i * parts + 4);
    }
    sort_by_address(spans);
    if (const Span* second = first_overlap(spans)) {
      const std::size_t one = std::max(second->owner, second[-1].owner);
      refuse(place(op, one), {shared_with(std::min(second->owner, second[-1].owner))});
    }
  }

  // Fails if a gradient shares memory with these, or with another gradient that is set to zero.
  void check_gradients(const char* op, const std::vector<StepTensor>& tensors, bool zero_grads) const {
    std::vector<Span> gradients;
    if (zero_grads) gradients.reserve(tensors.size());
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      if (tensors[i].gradient == nullptr || tensors[i].size == 0) continue;
      const auto* begin = static_cast<const char*>(tensors[i].gradient);
      const char* end = begin + tensors[i].size * bytes_of(tensors[i].type);
      check_gradient(op, begin, end, i);
      if (zero_grads) gradients.push_back({begin, end, i});
    }
    sort_by_address(gradients);
    if (const Span* second = first_overlap(gradients)) {
      refuse({op, "grads", std::max(second->owner, second[-1].owner)},
             {"shares its memory with grads[", std::min(second->owner, second[-1].owner),
              "], and they are to be set to zero"});
    }
  }

  // A gradient of which a copy was made. Where it has gaps, only its beginning is looked at.
  void check_original(const char* op, const Tensor& gradient, std::size_t i) const {
    const Form form = form_of(gradient);
    const Extent extent = extent_of(form, gradient.numel());
    const auto* begin = static_cast<const char*>(gradient.const_data_ptr());
    check_gradient(op, begin, begin + (extent.dense ? extent.bytes : 1), i);
  }

 private:
  static constexpr std::size_t parts = 5;

  void add(const void* memory, std::int64_t bytes, std::size_t owner) {
    const auto* begin = static_cast<const char*>(memory);
    if (memory != nullptr && bytes > 0) spans.push_back({begin, begin + bytes, owner});
  }
  static Place place(const char* op, std::size_t owner) {
    static constexpr const char* lists[parts] = {"params", "exp_avgs", "exp_avg_sqs", "steps", "shadows"};
    return {op, lists[owner % parts], owner / parts};
  }
  static std::string shared_with(std::size_t owner) {
    const Place other = place("", owner);
    return joined({"shares its memory with ", other.list, "[", other.index, "]"});
  }
  void check_gradient(const char* op, const char* begin, const char* end, std::size_t i) const {
    const Span* written = overlapped_by(spans, begin, end);
    if (written != nullptr) refuse({op, "grads", i}, {shared_with(written->owner)});
  }

  std::vector<Span> spans;
};

// Runs the kernel, unless the norm is not finite: then no more than the zeroing is done.
inline void run_step(const char* op, const std::vector<StepTensor>& tensors,
                     const std::vector<StepGroup>& groups, const MaybeTensor& norm,
                     double max_norm, bool zero_grads) {
  double clip = 1.0;
  if (norm.has_value()) {
    const double value = read_norm(op, *norm);
    if (!__builtin_isfinite(value)) {
      for (const StepTensor& tensor : tensors) {
        if (!zero_grads || tensor.gradient == nullptr || tensor.size == 0) continue;
        std::memset(tensor.gradient, 0, static_cast<std::size_t>(tensor.size * bytes_of(tensor.type)));
      }
      return;
    }
    clip = clip_factor(value, max_norm);
  }
  fused_step(tensors.data(), static_cast<std::int64_t>(tensors.size()), groups.data(), clip, zero_grads,
             torch_for);
}

// The same on whichever device the parameters are.
inline void run_step(const char* op, const StepLists& lists, const std::vector<StepTensor>& tensors,
                     const Tensor& hyper, const MaybeTensor& norm, double max_norm,
                     bool zero_grads) {
  check_hyper(op, hyper);
  require_groups(op, lists, static_cast<std::size_t>(hyper.size(0)));
#if PTRAIN_CUDA
  if (!lists.params.empty() && lists.params[0].is_cuda()) {
    if (norm.has_value() && (norm->scalar_type() != ScalarType::Double || norm->numel() != 1)) {
      fail({op, ": norm has shape ", shape_of(*norm), "; it must be one float64"});
    }
    step_on_cuda(op, tensors, lists.params[0], hyper, norm, max_norm, zero_grads);
    return;
  }
#endif
  run_step(op, tensors, step_groups(op, hyper), norm, max_norm, zero_grads);
}

inline void fused_step_op(Stack& stack) {
  const char* op = "fused_step_";
  StepLists lists;
  lists.params = stack.tensors();
  std::vector<Tensor> grads = stack.tensors();
  lists.take_states(stack);
  const Tensor hyper = stack.tensor();
  const MaybeTensor norm = stack.maybe_tensor();
  const double max_norm = stack.number();
  const bool zero_grads = stack.flag();
  check_step_lists(op, lists);
  require_length(op, "grads", grads.size(), lists.params.size());
  check_hyper(op, hyper);
  require_groups(op, lists, static_cast<std::size_t>(hyper.size(0)));
  std::vector<Tensor> beside;
  std::vector<StepTensor> tensors;
  beside.reserve(grads.size());
  tensors.reserve(grads.size());
  for (std::size_t i = 0; i < grads.size(); ++i) {
    if (!lists.has_state(i)) refuse({op, "steps", i}, "has no elements");
    check_gradient(op, grads[i], lists.params[i], i);
    beside.push_back(laid_beside(grads[i], lists.params[i]));
    tensors.push_back(step_tensor(lists, i, &beside.back()));
  }
  const StepMemory memory(op, tensors);
  memory.check_gradients(op, tensors, zero_grads);
  for (std::size_t i = 0; i < grads.size(); ++i) {
    if (beside[i].get() != grads[i].get()) memory.check_original(op, grads[i], i);
  }
  run_step(op, lists, tensors, hyper, norm, max_norm, zero_grads);
  for (std::size_t i = 0; zero_grads && i < grads.size(); ++i) {
    if (beside[i].get() != grads[i].get()) zero(grads[i]);
  }
}

// The tensors of one optimizer on one device: checked once. At each call the handles are asked where their
// memory is now, so that `param.data = other` is followed, and whether they are what they were.
class StepPlan : public Plan {
 public:
  explicit StepPlan(StepLists checked) : lists(std::move(checked)), params(lists.params) {
    for (std::size_t i = 0; i < lists.params.size(); ++i) {
      const bool state = lists.has_state(i);
      handles.push_back({
          lists.params[i].get(),
          nullptr,
          state ? lists.exp_avgs[i].get() : nullptr,
          state ? lists.exp_avg_sqs[i].get() : nullptr,
          state ? lists.steps[i].get() : nullptr,
          lists.has_shadow(i) ? lists.shadows[i].get() : nullptr,
      });
      table.push_back(step_tensor(lists, i, nullptr));
    }
    memory.emplace("step_plan", table);
    gradients.resize(lists.params.size());
    originals.resize(lists.params.size());
  }

  void set_gradients(std::vector<Tensor> some, const std::vector<std::int64_t>& places);
  Tensor norm();
  void check(bool zero_grads);
  void apply(const Tensor& hyper, const MaybeTensor& norm, double max_norm, bool average,
             bool zero_grads);

 private:
  struct Handles {
    AtenTensorHandle weight;
    AtenTensorHandle gradient;  // null also where the kernel reads a copy of it
    AtenTensorHandle exp_avg, exp_avg_sq, step, shadow;
  };

  void refresh(const char* op, bool zero_grads);
  bool refresh(std::size_t i) noexcept;
  bool is_readable(AtenTensorHandle gradient, std::size_t i) const noexcept;
  const char* changed_part(std::size_t i) const;

  StepLists lists;
  Held params;  // what the parameters were when the plan was made, and their states and gradients beside them
  std::vector<Handles> handles;
  std::vector<StepTensor> table;
  std::optional<StepMemory> memory;
  std::vector<MaybeTensor> gradients;  // as they lie beside their parameters
  std::vector<MaybeTensor> originals;  // those of which a copy was made
  // What has moved is looked at until it has passed once: a step that is refused is refused again.
  // Set by several threads, atomically.
  bool moved = false;
  bool gradients_moved = false;
  bool gradients_apart = false;  // from each other
};

// One float32, of any number of dimensions.
inline bool is_step(AtenTensorHandle handle) noexcept {
  std::int32_t type = 0;
  std::int64_t elements = 0;
  if (aoti_torch_get_dtype(handle, &type) | aoti_torch_get_numel(handle, &elements)) return false;
  return type == static_cast<std::int32_t>(ScalarType::Float) && elements == 1;
}

// The form of a parameter's moments and average.
inline Form state_form(Form form, FloatType type) {
  form.type = static_cast<std::int32_t>(type == FloatType::float64 ? ScalarType::Double : ScalarType::Float);
  return form;
}

// Of a gradient whose memory is new.
inline bool StepPlan::is_readable(AtenTensorHandle gradient, std::size_t i) const noexcept {
  std::int32_t device = 0, index = 0, index_of_param = 0;
  if (aoti_torch_get_device_type(gradient, &device) | aoti_torch_get_device_index(gradient, &index) |
      aoti_torch_get_device_index(handles[i].weight, &index_of_param)) {
    return false;
  }
  const std::int64_t width = bytes_of(table[i].type);
  return device == params.form(i).device && index == index_of_param &&
         storage_holds(gradient, table[i].size * width, width);
}

inline void StepPlan::set_gradients(std::vector<Tensor> some, const std::vector<std::int64_t>& places) {
  const Locked one_at_a_time(busy);
  const char* op = "step_set_gradients";
  const bool all = places.empty() && !some.empty();
  require_length(op, "gradients", some.size(), all ? lists.params.size() : places.size());
  std::vector<MaybeTensor> beside(lists.params.size()), copied(lists.params.size());
  std::vector<void*> pointers(lists.params.size(), nullptr);
  for (std::size_t k = 0; k < some.size(); ++k) {
    const std::size_t i = all ? k : static_cast<std::size_t>(places[k]);
    if (i >= lists.params.size()) refuse({op, "places", k}, "is no parameter of this plan");
    if (!lists.has_state(i)) refuse({op, "gradients", k}, "belongs to a parameter without a state");
    const Form form = params.form(i);
    if (has_form(some[k].get(), form) && is_readable(some[k].get(), i)) {
      beside[i] = std::move(some[k]);
    } else {
      check_gradient(op, some[k], lists.params[i], i);
      beside[i] = empty_like(lists.params[i]);
      if (!has_form(beside[i]->get(), form)) {
        refuse({op, "params", i}, "has got another shape, strides or dtype since the plan was made");
      }
      copy_into(*beside[i], some[k]);
      copied[i] = std::move(some[k]);
    }
    pointers[i] = gradient_memory(memory_of(beside[i]->get()), table[i].step);
  }
  gradients = std::move(beside);
  originals = std::move(copied);
  for (std::size_t i = 0; i < handles.size(); ++i) {
    const bool itself = gradients[i].has_value() && !originals[i].has_value();
    handles[i].gradient = itself ? gradients[i]->get() : nullptr;
    table[i].gradient = pointers[i];
  }
  gradients_moved = true;
}

inline Tensor StepPlan::norm() {
  const Locked one_at_a_time(busy);
  const char* op = "step_norm";
  std::vector<NormTensor> tensors;
  tensors.reserve(handles.size());
  for (std::size_t i = 0; i < handles.size(); ++i) {
    if (!gradients[i].has_value()) continue;
    if (originals[i].has_value()) {
      require_beside(*originals[i], gradients[i]->scalar_type(), *gradients[i], {op, "grads", i});
      copy_into(*gradients[i], *originals[i]);
    } else {
      void* const now = gradient_memory(memory_of(handles[i].gradient), table[i].step);
      const bool same = has_form(handles[i].gradient, params.form(i));
      if (!same || (now != table[i].gradient && !is_readable(handles[i].gradient, i))) {
        refuse({op, "grads", i}, "has lost its memory, or got another shape, strides, dtype or device");
      }
      if (now != table[i].gradient) gradients_moved = true;
      table[i].gradient = now;
    }
    tensors.push_back({table[i].gradient, table[i].size, table[i].type});
  }
  return norm_of(tensors, lists.params.empty() ? nullptr : &lists.params[0]);
}

// Asks all tensors again: 0.12 us a parameter with all its parts, so many are shared out.
inline void StepPlan::refresh(const char* op, bool zero_grads) {
  std::int64_t first_changed = INT64_MAX;
  struct Context {
    StepPlan& plan;
    std::int64_t& first_changed;
  } context{*this, first_changed};
  const auto some = [](std::int64_t begin, std::int64_t end, void* given) {
    Context& it = *static_cast<Context*>(given);
    for (std::int64_t i = begin; i < end; ++i) {
      if (it.plan.refresh(static_cast<std::size_t>(i))) continue;
      return note_first(&it.first_changed, i);
    }
  };
  const auto count = static_cast<std::int64_t>(table.size());
  if (count > 512) {
    torch_for(count, 256, some, &context);
  } else {
    some(0, count, &context);
  }
  if (first_changed != INT64_MAX) {
    const auto i = static_cast<std::size_t>(first_changed);
    refuse({op, changed_part(i), i}, "has got another shape, strides or dtype since the plan was made");
  }
  if (moved) {
    for (std::size_t i = 0; i < table.size(); ++i) check_step_tensor(op, lists, i);
    if (!table.empty() && form_of(lists.params[0]).device != params.form(0).device) {
      refuse({op, "params", 0}, "is on another device than when the plan was made");
    }
    memory.emplace(op, table);
  }
  if (moved || gradients_moved || (zero_grads && !gradients_apart)) {
    gradients_apart = false;
    for (std::size_t i = 0; i < table.size(); ++i) {
      if (originals[i].has_value()) memory->check_original(op, *originals[i], i);
      if (handles[i].gradient != nullptr && !is_readable(handles[i].gradient, i)) {
        refuse({op, "grads", i}, "has no memory, or is on another device than its parameter");
      }
    }
    memory->check_gradients(op, table, zero_grads);
    gradients_apart = zero_grads;
  }
  moved = false;
  gradients_moved = false;
}

// Whether tensor i is what it was; notes where it is. Called from several threads: it must not throw.
inline bool StepPlan::refresh(std::size_t i) noexcept {
  const Handles& handle = handles[i];
  StepTensor now = table[i];
  // Six pointers first: each is two or three reads far apart in memory, and the processor waits for all at once.
  now.weight = memory_of(handle.weight);
  now.exp_avg = memory_of(handle.exp_avg);
  now.exp_avg_sq = memory_of(handle.exp_avg_sq);
  now.step = static_cast<float*>(memory_of(handle.step));
  now.shadow = memory_of(handle.shadow);
  if (handle.gradient != nullptr) now.gradient = gradient_memory(memory_of(handle.gradient), now.step);
  const Form form = params.form(i), beside = state_form(form, now.type);
  const bool same =
      has_form(handle.weight, form) &&
      (handle.step == nullptr || (has_form(handle.exp_avg, beside) && has_form(handle.exp_avg_sq, beside) &&
                                  is_step(handle.step))) &&
      (handle.shadow == nullptr || has_form(handle.shadow, beside)) &&
      (handle.gradient == nullptr || has_form(handle.gradient, form));
  if (!same) return false;
  StepTensor& before = table[i];
  if (now.gradient != before.gradient) __atomic_store_n(&gradients_moved, true, __ATOMIC_RELAXED);
  if (now.weight != before.weight || now.exp_avg != before.exp_avg || now.exp_avg_sq != before.exp_avg_sq ||
      now.step != before.step || now.shadow != before.shadow) {
    __atomic_store_n(&moved, true, __ATOMIC_RELAXED);
  }
  before = now;
  return true;
}

// The list of the first of its parts that is not what it was.
inline const char* StepPlan::changed_part(std::size_t i) const {
  const Handles& handle = handles[i];
  const Form form = params.form(i), beside = state_form(form, table[i].type);
  if (!has_form(handle.weight, form)) return "params";
  if (handle.step != nullptr) {
    if (!has_form(handle.exp_avg, beside)) return "exp_avgs";
    if (!has_form(handle.exp_avg_sq, beside)) return "exp_avg_sqs";
    if (!is_step(handle.step)) return "steps";
  }
  if (handle.shadow != nullptr && !has_form(handle.shadow, beside)) return "shadows";
  return "grads";
}

inline void StepPlan::check(bool zero_grads) {
  const Locked one_at_a_time(busy);
  refresh("step_check", zero_grads);
}

inline void StepPlan::apply(const Tensor& hyper, const MaybeTensor& norm, double max_norm,
                            bool average, bool zero_grads) {
  const Locked one_at_a_time(busy);
  refresh("step_apply_", zero_grads);
  if (average) {
    run_step("step_apply_", lists, table, hyper, norm, max_norm, zero_grads);
  } else {
    std::vector<StepTensor> resting = table;
    for (StepTensor& tensor : resting) tensor.shadow = nullptr;
    run_step("step_apply_", lists, resting, hyper, norm, max_norm, zero_grads);
  }
  for (MaybeTensor& original : originals) {
    if (zero_grads && original.has_value()) zero(*original);
  }
}

// Never destroyed: its tensors must not outlive torch at the end of the process.
inline Plans& step_plans() {
  static Plans* plans = new Plans("step: there is no plan ");
  return *plans;
}

class UsedStepPlan {
 public:
  explicit UsedStepPlan(std::int64_t number) : plan(step_plans().find(number)) {}
  StepPlan* operator->() const { return static_cast<StepPlan*>(plan.get()); }

 private:
  PlanHold plan;
};

inline void step_plan_op(Stack& stack) {
  StepLists lists;
  lists.params = stack.tensors();
  lists.take_states(stack);
  check_step_lists("step_plan", lists);
  stack.give(step_plans().keep(new StepPlan(std::move(lists))));
}

inline void step_set_gradients_op(Stack& stack) {
  const std::int64_t number = stack.integer();
  std::vector<Tensor> gradients = stack.tensors();
  const std::vector<std::int64_t> places = stack.integers();
  UsedStepPlan(number)->set_gradients(std::move(gradients), places);
}

inline void step_norm_op(Stack& stack) { stack.give(UsedStepPlan(stack.integer())->norm()); }

inline void step_apply_op(Stack& stack) {
  const std::int64_t number = stack.integer();
  const Tensor hyper = stack.tensor();
  const MaybeTensor norm = stack.maybe_tensor();
  const double max_norm = stack.number();
  const bool average = stack.flag(), zero_grads = stack.flag();
  UsedStepPlan(number)->apply(hyper, norm, max_norm, average, zero_grads);
}

inline void step_check_op(Stack& stack) {
  const std::int64_t number = stack.integer();
  const bool zero_grads = stack.flag();
  UsedStepPlan(number)->check(zero_grads);
}

inline void step_free_plan_op(Stack& stack) { step_plans().forget(stack.integer()); }

inline void implement_step(Library& m) {
  m.impl("grad_norm", boxed<grad_norm_op>);
  m.impl("fused_step_", boxed<fused_step_op>);
  m.impl("step_plan", boxed<step_plan_op>);
  m.impl("step_apply_", boxed<step_apply_op>);
}

// The ops that a call without any tensor must reach too.
inline void implement_step_everywhere(Library& m) {
  m.impl("step_set_gradients", boxed<step_set_gradients_op>);
  m.impl("step_norm", boxed<step_norm_op>);
  m.impl("step_check", boxed<step_check_op>);
  m.impl("step_free_plan", boxed<step_free_plan_op>);
}

}  // namespace ptrain::glue

#pragma GCC visibility pop
