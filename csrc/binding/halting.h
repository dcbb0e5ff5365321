// The halting loss as ops: forward with its gradients, the gradients alone, and the exit rule.
//
// `halting_loss` gives the gradients of `loss` in the same pass if `wanted` asks for them;
// `halting_loss_` writes that by the logits over the logits. `halting_loss_backward` gives them for any
// upstream gradients of the four parts. A result that is not wanted is a tensor of no elements.
#pragma once

#include <vector>

#include "../core/exit.h"
#include "../core/halting_numbers.h"
#include "boxing.h"
#include "glue.h"

#pragma GCC visibility push(hidden)

namespace ptrain::glue {

// The settings that all forms of the loss share, in this order.
struct HaltingSettings {
  static constexpr const char* schema =
      "Tensor? class_weight, Tensor? reg_mask, Tensor? alphas, Tensor? betas, Tensor? etas, "
      "Tensor? row_count, Tensor? unit_count, float tau, float alpha, float beta, float eta, "
      "float label_smoothing, float rows, float units, int ignore_index, int reduction, bool empty_is_zero";

  MaybeTensor class_weight, reg_mask, alphas, betas, etas, row_count, unit_count;
  double tau, alpha, beta, eta, label_smoothing, rows, units;
  std::int64_t ignore_index, reduction;
  bool empty_is_zero;

  void take(Stack& stack) {
    for (MaybeTensor* tensor : {&class_weight, &reg_mask, &alphas, &betas, &etas, &row_count, &unit_count}) {
      *tensor = stack.maybe_tensor();
    }
    for (double* number : {&tau, &alpha, &beta, &eta, &label_smoothing, &rows, &units}) *number = stack.number();
    ignore_index = stack.integer();
    reduction = stack.integer();
    empty_is_zero = stack.flag();
  }
};

// What comes from above, to a backward pass.
struct HaltingUpstream {
  static constexpr const char* schema =
      "Tensor? grad_loss, Tensor? grad_task_loss, Tensor? grad_supervision, Tensor? grad_regulariser, ";

  MaybeTensor loss, task_loss, supervision, regulariser;
};

// The arguments of all forms of the loss.
struct HaltingArguments {
  Tensor logits, halting_logits, labels;
  HaltingUpstream upstream;
  HaltingSettings settings;
  std::int64_t wanted;

  HaltingArguments(Stack& stack, bool is_backward)
      : logits(stack.tensor()), halting_logits(stack.tensor()), labels(stack.tensor()) {
    if (is_backward) {
      for (MaybeTensor* part : {&upstream.loss, &upstream.task_loss, &upstream.supervision, &upstream.regulariser}) {
        *part = stack.maybe_tensor();
      }
    }
    settings.take(stack);
    wanted = stack.integer();
  }
};

inline void define_halting(Library& m) {
  const char* inputs = "(Tensor logits, Tensor halting_logits, Tensor labels, ";
  const char* in_place = "(Tensor(a!) logits, Tensor halting_logits, Tensor labels, ";
  const char* settings = HaltingSettings::schema;
  const char* upstream = HaltingUpstream::schema;
  const char* parts =
      ", int wanted) -> (Tensor loss, Tensor task_loss, Tensor supervision, Tensor regulariser, Tensor log_answer, "
      "Tensor halting_p, Tensor exit_weights, ";
  const auto define = [&m](std::initializer_list<Word> words) { m.def(joined(words).c_str()); };
  for (const char* name : {"halting_loss", "halting_loss_unrecorded"}) {
    define({name, inputs, settings, parts, "Tensor grad_logits, Tensor grad_halting)"});
  }
  define({"halting_loss_", in_place, settings, parts, "Tensor grad_halting)"});
  define({"halting_loss_backward", inputs, upstream, settings,
          ", int wanted) -> (Tensor grad_logits, Tensor grad_halting)"});
  define({"halting_loss_backward_", in_place, upstream, settings, ", int wanted) -> Tensor"});
  m.def("halting_exit(Tensor logits, Tensor halting_logits, Tensor? valid, float delta) -> "
        "(Tensor exit_block, Tensor log_answer, Tensor full_log_answer)");
}

enum HaltingReduction : std::int64_t { mean = 0, sum = 1, none = 2, given_mean = 3 };

// Bits of `wanted`.
constexpr std::int64_t want_log_answer = 1, want_halting_p = 2, want_exit_weights = 4, want_grad_logits = 8,
                       want_grad_halting = 16;

inline HaltingType halting_type(const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return HaltingType::float32;
    case ScalarType::BFloat16: return HaltingType::bfloat16;
    case ScalarType::Half: return HaltingType::float16;
    case ScalarType::Double: return HaltingType::float64;
    default: fail({"halting_loss: ", name, " are ", name_of(tensor.scalar_type()), ", not float"});
  }
}

// Whether each block is dense in rows and classes; the blocks themselves may lie apart.
inline bool blocks_are_dense(const Tensor& tensor) {
  std::int64_t size = 1;
  for (std::int64_t d = tensor.dim() - 1; d > 0; --d) {
    if (tensor.size(d) != 1 && tensor.stride(d) != size) return false;
    size *= tensor.size(d);
  }
  return tensor.dim() == 0 || tensor.size(0) <= 1 || tensor.stride(0) >= size || size == 0;
}

inline Tensor with_dense_blocks(const Tensor& tensor) {
  return blocks_are_dense(tensor) ? tensor : contiguous(tensor);
}

inline void check_cpu(const char* name, const Tensor& tensor) {
  if (!tensor.is_cpu()) fail({"halting_loss: ", name, " are not on the CPU"});
}

// The numbers of a tensor on the CPU.
inline std::vector<double> numbers(const char* name, const Tensor& tensor, std::int64_t count) {
  check_cpu(name, tensor);
  if (tensor.numel() != count) {
    fail({"halting_loss: ", name, " has shape ", shape_of(tensor), ", not ", count, " numbers"});
  }
  const Tensor dense = contiguous(tensor);
  const void* from = dense.const_data_ptr();
  std::vector<double> values(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) {
    switch (tensor.scalar_type()) {
      case ScalarType::Float: values[i] = static_cast<const float*>(from)[i]; break;
      case ScalarType::Double: values[i] = static_cast<const double*>(from)[i]; break;
      case ScalarType::BFloat16: values[i] = float_from_bfloat16(static_cast<const std::uint16_t*>(from)[i]); break;
      case ScalarType::Half: values[i] = float_from_float16(static_cast<const std::uint16_t*>(from)[i]); break;
      case ScalarType::Long: values[i] = static_cast<double>(static_cast<const std::int64_t*>(from)[i]); break;
      case ScalarType::Int: values[i] = static_cast<const std::int32_t*>(from)[i]; break;
      default: fail({"halting_loss: ", name, " is ", name_of(tensor.scalar_type())});
    }
  }
  return values;
}

// One number for each block: of the tensor if there is one.
inline std::vector<double> per_block(const char* name, const MaybeTensor& tensor, double value,
                                     std::int64_t blocks) {
  if (tensor.has_value()) return numbers(name, *tensor, blocks);
  return std::vector<double>(static_cast<std::size_t>(blocks), value);
}

// What the checks leave of the tensors: the task, and what it points into.
struct HaltingCall {
  HaltingTask task;
  Tensor logits, halting;
  std::vector<std::int64_t> rows_shape, units_shape;
  std::vector<double> class_weight, alpha, beta, eta;
  MaybeTensor labels, mask;
  double row_count = 1.0, unit_count = 1.0, tau = 0.0;
  bool reduces = true;
};

inline void check_sizes(const Tensor& logits, const Tensor& halting, HaltingTask& task) {
  const std::int64_t dim = logits.dim();
  if (dim < 3 || logits.size(0) < 1 || logits.size(dim - 1) < 2) {
    fail({"halting_loss: logits have shape ", shape_of(logits), ", not [blocks, rows, 2 or more classes]"});
  }
  const bool per_row = halting.dim() == dim - 1;
  const bool per_sentence = halting.dim() == dim - 2 && dim > 3;
  bool fits = per_row || per_sentence;
  for (std::int64_t d = 0; fits && d < halting.dim(); ++d) fits = halting.size(d) == logits.size(d);
  if (!fits) {
    fail({"halting_loss: halting_logits have shape ", shape_of(halting), ", which logits of shape ",
          shape_of(logits), " do not fit"});
  }
  task.blocks = logits.size(0);
  task.classes = logits.size(dim - 1);
  task.tokens = per_sentence ? logits.size(dim - 2) : 1;
  task.units = halting.numel() / task.blocks;
}

inline bool same_shape(const Tensor& tensor, const std::vector<std::int64_t>& shape) {
  if (tensor.dim() != static_cast<std::int64_t>(shape.size())) return false;
  for (std::int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) != shape[d]) return false;
  }
  return true;
}

inline void take_labels(HaltingCall& call, const Tensor& labels, std::int64_t ignore_index) {
  HaltingTask& task = call.task;
  check_cpu("labels", labels);
  call.labels = contiguous(labels);
  const void* data = call.labels->const_data_ptr();
  const ScalarType type = labels.scalar_type();
  std::vector<std::int64_t> wanted = call.rows_shape;
  if (type == ScalarType::Long || type == ScalarType::Int) {
    // No rows, no labels to point at: any address will do.
    task.labels = data == nullptr ? &task : data;
    task.labels_are_int32 = type == ScalarType::Int;
    task.ignore_index = ignore_index;
  } else {
    task.soft_type = halting_type("labels", labels);
    task.soft_labels = data;
    wanted.push_back(task.classes);
  }
  if (!same_shape(labels, wanted)) {
    fail({"halting_loss: labels have shape ", shape_of(labels), ", which logits of shape ",
          shape_of(call.logits), " do not fit"});
  }
}

inline void take_mask(HaltingCall& call, const Tensor& mask) {
  check_cpu("reg_mask", mask);
  const bool per_unit = same_shape(mask, call.units_shape);
  if (mask.scalar_type() != ScalarType::Bool || !(per_unit || same_shape(mask, call.rows_shape))) {
    fail({"halting_loss: reg_mask is ", name_of(mask.scalar_type()), " of shape ", shape_of(mask),
          ", not bool of the units' or the rows' shape"});
  }
  call.mask = contiguous(mask);
  call.task.mask = static_cast<const unsigned char*>(call.mask->const_data_ptr());
  call.task.mask_is_per_row = !per_unit;
}

inline HaltingCall halting_call(const HaltingArguments& arguments) {
  const Tensor &logits = arguments.logits, &halting = arguments.halting_logits;
  const HaltingSettings& with = arguments.settings;
  check_cpu("logits", logits);
  check_cpu("halting_logits", halting);
  HaltingCall call{{}, with_dense_blocks(logits), with_dense_blocks(halting), {}, {}, {}, {}, {}, {}, {}, {}};
  HaltingTask& task = call.task;
  check_sizes(logits, halting, task);
  task.logits_type = halting_type("logits", logits);
  task.halting_type = halting_type("halting_logits", halting);
  task.in_double = task.logits_type == HaltingType::float64 || task.halting_type == HaltingType::float64;
  task.logits = call.logits.const_data_ptr();
  task.logits_stride = call.logits.stride(0);
  task.halting = call.halting.const_data_ptr();
  task.halting_stride = call.halting.stride(0);
  for (std::int64_t d = 1; d < logits.dim() - 1; ++d) call.rows_shape.push_back(logits.size(d));
  for (std::int64_t d = 1; d < halting.dim(); ++d) call.units_shape.push_back(halting.size(d));
  take_labels(call, arguments.labels, with.ignore_index);
  if (with.reg_mask.has_value()) take_mask(call, *with.reg_mask);
  if (with.class_weight.has_value()) {
    call.class_weight = numbers("class_weight", *with.class_weight, task.classes);
    task.class_weight = call.class_weight.data();
  }
  task.label_smoothing = with.label_smoothing;
  call.alpha = per_block("alphas", with.alphas, with.alpha, task.blocks);
  call.beta = per_block("betas", with.betas, with.beta, task.blocks);
  task.alpha = call.alpha.data();
  task.beta = call.beta.data();
  if (with.etas.has_value() || with.eta != 0.0) {
    call.eta = per_block("etas", with.etas, with.eta, task.blocks);
    task.eta = call.eta.data();
  }
  call.tau = with.tau;
  const HaltingCounts counts = halting_counts(task);
  if (counts.has_wrong_label) {
    fail({"label ", counts.wrong_label, " is out of range: there are ", task.classes,
          " classes, numbered from 0 to ", task.classes - 1, "; rows without a label carry ", with.ignore_index});
  }
  call.reduces = with.reduction != none;
  if (with.reduction == mean) {
    call.row_count = with.empty_is_zero && counts.rows == 0.0 ? 1.0 : counts.rows;
    call.unit_count = with.empty_is_zero && counts.units == 0.0 ? 1.0 : counts.units;
  } else if (with.reduction == given_mean) {
    call.row_count = with.row_count.has_value() ? numbers("row_count", *with.row_count, 1)[0] : with.rows;
    call.unit_count = with.unit_count.has_value() ? numbers("unit_count", *with.unit_count, 1)[0] : with.units;
  }
  return call;
}

inline std::vector<std::int64_t> with_blocks(const HaltingCall& call, const std::vector<std::int64_t>& shape) {
  std::vector<std::int64_t> all{call.task.blocks};
  all.insert(all.end(), shape.begin(), shape.end());
  return all;
}

inline ScalarType result_type(const HaltingTask& task) {
  return task.in_double ? ScalarType::Double : ScalarType::Float;
}

inline Tensor new_number(const HaltingTask& task, double value) {
  Tensor tensor = new_tensor({}, result_type(task));
  if (task.in_double) {
    *static_cast<double*>(tensor.mutable_data_ptr()) = value;
  } else {
    *static_cast<float*>(tensor.mutable_data_ptr()) = static_cast<float>(value);
  }
  return tensor;
}

// a + b in the type of the results; no multiplication may be drawn into it.
inline double add_rounded(const HaltingTask& task, double a, double b) {
  volatile double sum = a + b;
  return task.in_double ? sum : static_cast<float>(sum);
}

inline double times_rounded(const HaltingTask& task, double a, double b) {
  if (!task.in_double) return static_cast<float>(static_cast<double>(static_cast<float>(a)) * b);
  volatile double product = a * b;
  return product;
}

// Adds the gradients that are asked for: the one by the logits goes to `over` if there is one.
struct HaltingGradients {
  Tensor logits, halting;
};

inline HaltingGradients take_gradients(HaltingCall& call, std::int64_t wanted, const Tensor* over) {
  HaltingTask& task = call.task;
  const std::vector<std::int64_t> nothing{0};
  const bool by_logits = over == nullptr && (wanted & want_grad_logits);
  const bool by_halting = wanted & want_grad_halting;
  HaltingGradients gradients{
      new_tensor(by_logits ? shape_vector(call.logits) : nothing, call.logits.scalar_type()),
      new_tensor(by_halting ? shape_vector(call.halting) : nothing, call.halting.scalar_type())};
  if (over != nullptr) {
    task.grad_logits = over->mutable_data_ptr();
    task.grad_logits_stride = task.logits_stride;
  } else if (by_logits) {
    task.grad_logits = gradients.logits.mutable_data_ptr();
    task.grad_logits_stride = task.units * task.tokens * task.classes;
  }
  if (by_halting) task.grad_halting = gradients.halting.mutable_data_ptr();
  return gradients;
}

inline void check_in_place(const Tensor& logits) {
  if (!blocks_are_dense(logits)) {
    fail({"halting_loss_: logits of shape ", shape_of(logits),
          " are not dense in rows and classes, so no gradient can be written over them"});
  }
}

struct HaltingParts {
  Tensor loss, task_loss, supervision, regulariser, log_answer, halting_p, exit_weights;
};

// Runs the loss; the gradients, if wanted, are those of `loss`.
inline HaltingParts run_halting(HaltingCall& call, std::int64_t wanted) {
  HaltingTask& task = call.task;
  const ScalarType type = result_type(task);
  const std::vector<std::int64_t> nothing{0};
  std::vector<std::int64_t> answer_shape = call.rows_shape;
  answer_shape.push_back(task.classes);
  auto output = [&](std::int64_t bit, const std::vector<std::int64_t>& shape, void*& to) {
    Tensor tensor = new_tensor(wanted & bit ? shape : nothing, type);
    if (wanted & bit) to = tensor.mutable_data_ptr();
    return tensor;
  };
  Tensor log_answer = output(want_log_answer, answer_shape, task.log_answer);
  Tensor halting_p = output(want_halting_p, with_blocks(call, call.units_shape), task.halting_p);
  Tensor exit_weights = output(want_exit_weights, with_blocks(call, call.units_shape), task.exit_weights);
  const double row_scale = 1.0 / call.row_count;
  const double unit_scale = call.tau == 0.0 ? 0.0 : call.tau / call.unit_count;
  task.grad_task = task.grad_supervision = {&row_scale, 0};
  task.grad_regulariser = {&unit_scale, 0};
  if (call.reduces) {
    const HaltingSums sums = halting_loss(task, torch_for);
    const double task_loss = add_rounded(task, sums.task / call.row_count, 0.0);
    const double supervision = add_rounded(task, sums.supervision / call.row_count, 0.0);
    const double regulariser = add_rounded(task, sums.regulariser / call.unit_count, 0.0);
    double loss = add_rounded(task, task_loss, supervision);
    if (call.tau != 0.0) loss = add_rounded(task, loss, times_rounded(task, call.tau, regulariser));
    return {new_number(task, loss), new_number(task, task_loss), new_number(task, supervision),
            new_number(task, regulariser), std::move(log_answer), std::move(halting_p), std::move(exit_weights)};
  }
  Tensor task_loss = new_tensor(call.rows_shape, type), supervision = new_tensor(call.rows_shape, type);
  Tensor regulariser = new_tensor(call.units_shape, type), loss = new_tensor(call.units_shape, type);
  task.task = task_loss.mutable_data_ptr();
  task.supervision = supervision.mutable_data_ptr();
  task.regulariser = regulariser.mutable_data_ptr();
  void* to = loss.mutable_data_ptr();
  halting_loss(task, torch_for);
  auto number = [&](const void* from, std::int64_t i) {
    return task.in_double ? static_cast<const double*>(from)[i] : static_cast<const float*>(from)[i];
  };
  for (std::int64_t unit = 0; unit < task.units; ++unit) {
    double total = 0.0;
    for (std::int64_t row = unit * task.tokens; row < (unit + 1) * task.tokens; ++row) {
      total += add_rounded(task, number(task.task, row), number(task.supervision, row));
    }
    total = add_rounded(task, total, 0.0);
    if (call.tau != 0.0) {
      total = add_rounded(task, total, times_rounded(task, call.tau, number(task.regulariser, unit)));
    }
    if (task.in_double) {
      static_cast<double*>(to)[unit] = total;
    } else {
      static_cast<float*>(to)[unit] = static_cast<float>(total);
    }
  }
  return {std::move(loss), std::move(task_loss), std::move(supervision), std::move(regulariser),
          std::move(log_answer), std::move(halting_p), std::move(exit_weights)};
}

inline void check_gradients_are_sums(const HaltingCall& call, std::int64_t wanted) {
  if (!call.reduces && (wanted & (want_grad_logits | want_grad_halting))) {
    fail("halting_loss: without a reduction the gradients need those from above: halting_loss_backward");
  }
}

inline void give_parts(Stack& stack, const HaltingParts& parts) {
  stack.give({&parts.loss, &parts.task_loss, &parts.supervision, &parts.regulariser, &parts.log_answer,
              &parts.halting_p, &parts.exit_weights});
}

inline void halting_loss_op(Stack& stack) {
  const HaltingArguments arguments(stack, false);
  HaltingCall call = halting_call(arguments);
  check_gradients_are_sums(call, arguments.wanted);
  const HaltingGradients gradients = take_gradients(call, arguments.wanted, nullptr);
  give_parts(stack, run_halting(call, arguments.wanted));
  stack.give({&gradients.logits, &gradients.halting});
}

inline void halting_loss_in_place_op(Stack& stack) {
  const HaltingArguments arguments(stack, false);
  check_in_place(arguments.logits);
  HaltingCall call = halting_call(arguments);
  check_gradients_are_sums(call, want_grad_logits);
  const HaltingGradients gradients = take_gradients(call, arguments.wanted, &arguments.logits);
  give_parts(stack, run_halting(call, arguments.wanted));
  stack.give(gradients.halting);
}

// What comes from above, per row or unit, or one number for all.
struct UpstreamNumbers {
  std::vector<double> task, supervision, regulariser;
};

inline void add_upstream(std::vector<double>& to, const char* name, const MaybeTensor& grad, double factor,
                         std::int64_t count, std::int64_t repeat) {
  if (!grad.has_value()) return;
  const std::vector<double> values = numbers(name, *grad, count);
  for (std::size_t i = 0; i < to.size(); ++i) to[i] += factor * values[i / static_cast<std::size_t>(repeat)];
}

inline HaltingGradients run_halting_backward(const HaltingArguments& arguments, const Tensor* over) {
  HaltingCall call = halting_call(arguments);
  const HaltingUpstream& from = arguments.upstream;
  HaltingTask& task = call.task;
  const std::int64_t units = call.reduces ? 1 : task.units;
  const std::int64_t tokens = call.reduces ? 1 : task.tokens;
  UpstreamNumbers upstream;
  upstream.task.assign(static_cast<std::size_t>(units * tokens), 0.0);
  upstream.supervision = upstream.task;
  upstream.regulariser.assign(static_cast<std::size_t>(units), 0.0);
  add_upstream(upstream.task, "grad_loss", from.loss, 1.0, units, tokens);
  add_upstream(upstream.supervision, "grad_loss", from.loss, 1.0, units, tokens);
  if (call.tau != 0.0) add_upstream(upstream.regulariser, "grad_loss", from.loss, call.tau, units, 1);
  add_upstream(upstream.task, "grad_task_loss", from.task_loss, 1.0, units * tokens, 1);
  add_upstream(upstream.supervision, "grad_supervision", from.supervision, 1.0, units * tokens, 1);
  add_upstream(upstream.regulariser, "grad_regulariser", from.regulariser, 1.0, units, 1);
  for (double& value : upstream.task) value /= call.row_count;
  for (double& value : upstream.supervision) value /= call.row_count;
  for (double& value : upstream.regulariser) {
    if (value != 0.0) value /= call.unit_count;
  }
  const std::int64_t step = call.reduces ? 0 : 1;
  task.grad_task = {upstream.task.data(), step};
  task.grad_supervision = {upstream.supervision.data(), step};
  task.grad_regulariser = {upstream.regulariser.data(), step};
  HaltingGradients gradients = take_gradients(call, arguments.wanted, over);
  halting_loss(task, torch_for);
  return gradients;
}

inline void halting_loss_backward_op(Stack& stack) {
  const HaltingArguments arguments(stack, true);
  const HaltingGradients gradients = run_halting_backward(arguments, nullptr);
  stack.give({&gradients.logits, &gradients.halting});
}

inline void halting_loss_backward_in_place_op(Stack& stack) {
  const HaltingArguments arguments(stack, true);
  check_in_place(arguments.logits);
  stack.give(run_halting_backward(arguments, &arguments.logits).halting);
}

inline void halting_exit_op(Stack& stack) {
  const Tensor logits = stack.tensor(), halting_logits = stack.tensor();
  const MaybeTensor valid = stack.maybe_tensor();
  const double delta = stack.number();
  check_cpu("logits", logits);
  check_cpu("halting_logits", halting_logits);
  HaltingTask sizes{};
  check_sizes(logits, halting_logits, sizes);
  const Tensor z = with_dense_blocks(logits), u = with_dense_blocks(halting_logits);
  ExitTask task{};
  task.blocks = sizes.blocks;
  task.units = sizes.units;
  task.tokens = sizes.tokens;
  task.classes = sizes.classes;
  task.logits_type = halting_type("logits", z);
  task.halting_type = halting_type("halting_logits", u);
  task.logits = z.const_data_ptr();
  task.logits_stride = z.stride(0);
  task.halting = u.const_data_ptr();
  task.halting_stride = u.stride(0);
  task.delta = delta;
  task.in_double = task.logits_type == HaltingType::float64 || task.halting_type == HaltingType::float64;
  std::vector<std::int64_t> units_shape, answer_shape;
  for (std::int64_t d = 1; d < u.dim(); ++d) units_shape.push_back(u.size(d));
  for (std::int64_t d = 1; d < z.dim(); ++d) answer_shape.push_back(z.size(d));
  MaybeTensor mask;
  if (valid.has_value()) {
    check_cpu("valid", *valid);
    if (valid->scalar_type() != ScalarType::Bool || valid->numel() != task.units * task.tokens) {
      fail({"halting_exit: valid has shape ", shape_of(*valid), ", not bool of the rows' shape"});
    }
    mask = contiguous(*valid);
    task.valid = static_cast<const unsigned char*>(mask->const_data_ptr());
  }
  const ScalarType type = task.in_double ? ScalarType::Double : ScalarType::Float;
  Tensor exit_block = new_tensor(units_shape, ScalarType::Long);
  Tensor log_answer = new_tensor(answer_shape, type), full_log_answer = new_tensor(answer_shape, type);
  task.exit_block = static_cast<std::int64_t*>(exit_block.mutable_data_ptr());
  task.log_answer = log_answer.mutable_data_ptr();
  task.full_log_answer = full_log_answer.mutable_data_ptr();
  halting_exit(task, torch_for);
  stack.give({&exit_block, &log_answer, &full_log_answer});
}

inline void implement_halting(Library& m) {
  m.impl("halting_loss", boxed<halting_loss_op>);
  m.impl("halting_loss_unrecorded", boxed<halting_loss_op>);
  m.impl("halting_loss_", boxed<halting_loss_in_place_op>);
  m.impl("halting_loss_backward", boxed<halting_loss_backward_op>);
  m.impl("halting_loss_backward_", boxed<halting_loss_backward_in_place_op>);
  m.impl("halting_exit", boxed<halting_exit_op>);
}

}  // namespace ptrain::glue

#pragma GCC visibility pop
