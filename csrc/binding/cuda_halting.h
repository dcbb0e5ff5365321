// The halting loss as ops on CUDA tensors: the schemas of halting.h, nothing read back by the host.
#pragma once

#if PTRAIN_CUDA

#include "../cuda/halting.h"
#include "cuda.h"
#include "halting.h"

#pragma GCC visibility push(hidden)

namespace ptrain::glue {

inline cuda::NumberType cuda_number_type(const char* op, const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return cuda::NumberType::float32;
    case ScalarType::BFloat16: return cuda::NumberType::bfloat16;
    case ScalarType::Half: return cuda::NumberType::float16;
    case ScalarType::Double: return cuda::NumberType::float64;
    case ScalarType::Long: return cuda::NumberType::int64;
    case ScalarType::Int: return cuda::NumberType::int32;
    default: fail({op, ": ", name, " is ", name_of(tensor.scalar_type())});
  }
}

inline bool is_float(cuda::NumberType type) { return type <= cuda::NumberType::float64; }

// The tensors and numbers of one call, as the kernels want them.
class CudaHalting {
 public:
  CudaHalting(const char* op, const Tensor& logits, const Tensor& halting)
      : op_(op), call_(op, logits), logits_(with_dense_blocks(logits)), halting_(with_dense_blocks(halting)) {
    require_here("halting_logits", halting);
    HaltingTask sizes{};
    check_sizes(logits, halting, sizes);
    task.blocks = sizes.blocks;
    task.units = sizes.units;
    task.tokens = sizes.tokens;
    task.classes = sizes.classes;
    task.logits_type = static_cast<cuda::NumberType>(halting_type("logits", logits_));
    task.halting_type = static_cast<cuda::NumberType>(halting_type("halting_logits", halting_));
    task.in_double = task.logits_type == cuda::NumberType::float64 || task.halting_type == cuda::NumberType::float64;
    task.logits = logits_.const_data_ptr();
    task.logits_stride = logits_.stride(0);
    task.halting = halting_.const_data_ptr();
    task.halting_stride = halting_.stride(0);
    for (std::int64_t d = 1; d < logits.dim() - 1; ++d) rows_shape.push_back(logits.size(d));
    for (std::int64_t d = 1; d < halting.dim(); ++d) units_shape.push_back(halting.size(d));
    task.class_weight.all = 1.0;
  }

  cuda::HaltingTask task{};
  std::vector<std::int64_t> rows_shape, units_shape;

  ScalarType result_type() const { return task.in_double ? ScalarType::Double : ScalarType::Float; }
  bool reduces() const { return task.reduction != cuda::Reduction::none; }
  const Tensor& logits() const { return logits_; }
  const Tensor& halting() const { return halting_; }

  void require_here(const char* name, const Tensor& tensor) const {
    if (!tensor.is_cuda() || tensor.get_device_index() != call_.device_index()) {
      fail({op_, ": ", name, " and logits are on different devices"});
    }
  }

  // `count` numbers, or one for all where the tensor has one alone and it may be so.
  cuda::Numbers take(const char* name, const Tensor& tensor, std::int64_t count) {
    if (tensor.numel() != count) {
      fail({op_, ": ", name, " has shape ", shape_of(tensor), ", not ", count, " numbers"});
    }
    if (tensor.is_cpu()) {
      const double* values = call_.upload(numbers(name, tensor, count));
      return {values, cuda::NumberType::float64, 1, 0.0};
    }
    require_here(name, tensor);
    const Tensor& dense = call_.keep(contiguous(tensor));
    return {dense.const_data_ptr(), cuda_number_type(op_, name, tensor), 1, 0.0};
  }

  cuda::Numbers take(const char* name, const MaybeTensor& tensor, double otherwise, std::int64_t count) {
    if (tensor.has_value()) return take(name, *tensor, count);
    return {nullptr, cuda::NumberType::float32, 0, otherwise};
  }

  void take_labels(const Tensor& labels, std::int64_t ignore_index) {
    require_here("labels", labels);
    const Tensor& dense = call_.keep(contiguous(labels));
    const cuda::NumberType type = cuda_number_type(op_, "labels", labels);
    std::vector<std::int64_t> wanted = rows_shape;
    if (is_float(type)) {
      task.soft_labels = dense.const_data_ptr();
      if (task.soft_labels == nullptr) task.soft_labels = &task;  // no rows, nothing is read: any address will do
      task.soft_type = type;
      wanted.push_back(task.classes);
    } else {
      task.labels = dense.const_data_ptr();
      task.labels_type = type;
      task.ignore_index = ignore_index;
    }
    if (!same_shape(labels, wanted)) {
      fail({op_, ": labels have shape ", shape_of(labels), ", which logits of shape ", shape_of(logits_),
            " do not fit"});
    }
  }

  void take_mask(const Tensor& mask) {
    require_here("reg_mask", mask);
    const bool per_unit = same_shape(mask, units_shape);
    if (mask.scalar_type() != ScalarType::Bool || !(per_unit || same_shape(mask, rows_shape))) {
      fail({op_, ": reg_mask is ", name_of(mask.scalar_type()), " of shape ", shape_of(mask),
            ", not bool of the units' or the rows' shape"});
    }
    const Tensor& dense = call_.keep(contiguous(mask));
    task.mask = static_cast<const unsigned char*>(dense.const_data_ptr());
    task.mask_is_per_row = !per_unit;
  }

  // A result, of no elements if it is not wanted.
  Tensor result(bool wanted, const std::vector<std::int64_t>& shape, void*& to, std::optional<ScalarType> type = {}) {
    const std::vector<std::int64_t> nothing{0};
    Tensor tensor = new_beside(logits_, wanted ? shape : nothing, type.value_or(result_type()));
    if (wanted) to = tensor.mutable_data_ptr();
    return tensor;
  }

  HaltingGradients take_gradients(std::int64_t wanted, const Tensor* over) {
    const bool by_logits = over == nullptr && (wanted & want_grad_logits);
    HaltingGradients gradients{
        result(by_logits, shape_vector(logits_), task.grad_logits, logits_.scalar_type()),
        result(wanted & want_grad_halting, shape_vector(halting_), task.grad_halting, halting_.scalar_type())};
    task.grad_logits_stride = task.units * task.tokens * task.classes;
    if (over != nullptr) {
      task.grad_logits = over->mutable_data_ptr();
      task.grad_logits_stride = task.logits_stride;
    }
    return gradients;
  }

  void run() {
    const char* refusal = cuda::halting_refusal(task);
    if (refusal != nullptr) fail({op_, ": ", refusal});
    task.scratch = call_.room<double>(cuda::halting_scratch(task));
    call_.check(cuda::halting_loss(task, call_.stream()));
  }

 private:
  const char* op_;
  CudaCall call_;
  Tensor logits_, halting_;
};

inline void take_settings(CudaHalting& call, const Tensor& labels, const HaltingSettings& with) {
  cuda::HaltingTask& task = call.task;
  call.take_labels(labels, with.ignore_index);
  if (with.reg_mask.has_value()) call.take_mask(*with.reg_mask);
  task.class_weight = call.take("class_weight", with.class_weight, 1.0, task.classes);
  task.label_smoothing = with.label_smoothing;
  task.alpha = call.take("alphas", with.alphas, with.alpha, task.blocks);
  task.beta = call.take("betas", with.betas, with.beta, task.blocks);
  task.eta = call.take("etas", with.etas, with.eta, task.blocks);
  task.has_eta = with.etas.has_value() || with.eta != 0.0;
  task.tau = with.tau;
  task.reduction = static_cast<cuda::Reduction>(with.reduction);
  task.empty_is_zero = with.empty_is_zero;
  task.row_count = call.take("row_count", with.row_count, with.rows, 1);
  task.unit_count = call.take("unit_count", with.unit_count, with.units, 1);
}

static_assert(static_cast<int>(cuda::Reduction::mean) == mean && static_cast<int>(cuda::Reduction::sum) == sum &&
              static_cast<int>(cuda::Reduction::none) == none &&
              static_cast<int>(cuda::Reduction::given_mean) == given_mean);

inline HaltingParts run_cuda_halting(CudaHalting& call, std::int64_t wanted) {
  cuda::HaltingTask& task = call.task;
  if (!call.reduces() && (task.grad_logits != nullptr || task.grad_halting != nullptr)) {
    fail("halting_loss: without a reduction the gradients need those from above: halting_loss_backward");
  }
  task.grad_loss.all = 1.0;
  const std::vector<std::int64_t> one;
  const std::vector<std::int64_t>& of_rows = call.reduces() ? one : call.rows_shape;
  const std::vector<std::int64_t>& of_units = call.reduces() ? one : call.units_shape;
  std::vector<std::int64_t> answer = call.rows_shape, per_unit = call.units_shape;
  answer.push_back(task.classes);
  per_unit.insert(per_unit.begin(), task.blocks);
  Tensor loss = call.result(true, of_units, task.loss);
  Tensor task_loss = call.result(true, of_rows, task.task);
  Tensor supervision = call.result(true, of_rows, task.supervision);
  Tensor regulariser = call.result(true, of_units, task.regulariser);
  Tensor log_answer = call.result(wanted & want_log_answer, answer, task.log_answer);
  Tensor halting_p = call.result(wanted & want_halting_p, per_unit, task.halting_p);
  Tensor exit_weights = call.result(wanted & want_exit_weights, per_unit, task.exit_weights);
  call.run();
  return {loss, task_loss, supervision, regulariser, log_answer, halting_p, exit_weights};
}

inline void cuda_halting_loss_op(Stack& stack) {
  const HaltingArguments arguments(stack, false);
  CudaHalting call("halting_loss", arguments.logits, arguments.halting_logits);
  take_settings(call, arguments.labels, arguments.settings);
  const HaltingGradients gradients = call.take_gradients(arguments.wanted, nullptr);
  give_parts(stack, run_cuda_halting(call, arguments.wanted));
  stack.give({&gradients.logits, &gradients.halting});
}

inline void cuda_halting_loss_in_place_op(Stack& stack) {
  const HaltingArguments arguments(stack, false);
  check_in_place(arguments.logits);
  CudaHalting call("halting_loss_", arguments.logits, arguments.halting_logits);
  take_settings(call, arguments.labels, arguments.settings);
  const HaltingGradients gradients = call.take_gradients(arguments.wanted, &arguments.logits);
  give_parts(stack, run_cuda_halting(call, arguments.wanted));
  stack.give(gradients.halting);
}

inline HaltingGradients run_cuda_halting_backward(const char* op, const HaltingArguments& arguments,
                                                  const Tensor* over) {
  CudaHalting call(op, arguments.logits, arguments.halting_logits);
  take_settings(call, arguments.labels, arguments.settings);
  const HaltingUpstream& from = arguments.upstream;
  cuda::HaltingTask& task = call.task;
  const std::int64_t step = call.reduces() ? 0 : 1;
  const std::int64_t units = call.reduces() ? 1 : task.units, rows = call.reduces() ? 1 : task.units * task.tokens;
  const auto from_above = [&](const char* name, const MaybeTensor& grad, std::int64_t count) {
    cuda::Numbers numbers = call.take(name, grad, 0.0, count);
    numbers.step = step;
    return numbers;
  };
  task.grad_loss = from_above("grad_loss", from.loss, units);
  task.grad_task = from_above("grad_task_loss", from.task_loss, rows);
  task.grad_supervision = from_above("grad_supervision", from.supervision, rows);
  task.grad_regulariser = from_above("grad_regulariser", from.regulariser, units);
  HaltingGradients gradients = call.take_gradients(arguments.wanted, over);
  call.run();
  return gradients;
}

inline void cuda_halting_loss_backward_op(Stack& stack) {
  const HaltingArguments arguments(stack, true);
  const HaltingGradients gradients = run_cuda_halting_backward("halting_loss_backward", arguments, nullptr);
  stack.give({&gradients.logits, &gradients.halting});
}

inline void cuda_halting_loss_backward_in_place_op(Stack& stack) {
  const HaltingArguments arguments(stack, true);
  check_in_place(arguments.logits);
  stack.give(run_cuda_halting_backward("halting_loss_backward_", arguments, &arguments.logits).halting);
}

inline void cuda_halting_exit_op(Stack& stack) {
  const Tensor logits = stack.tensor(), halting_logits = stack.tensor();
  const MaybeTensor valid = stack.maybe_tensor();
  const double delta = stack.number();
  const char* op = "halting_exit";
  HaltingTask sizes{};
  check_sizes(logits, halting_logits, sizes);
  if (sizes.classes < 2) fail({"halting_exit: logits of shape ", shape_of(logits), " have one class"});
  if (!halting_logits.is_cuda() || halting_logits.get_device_index() != logits.get_device_index()) {
    fail("halting_exit: halting_logits and logits are on different devices");
  }
  CudaCall call(op, logits);
  const Tensor z = with_dense_blocks(logits), u = with_dense_blocks(halting_logits);
  cuda::ExitTask task{};
  task.blocks = sizes.blocks;
  task.units = sizes.units;
  task.tokens = sizes.tokens;
  task.classes = sizes.classes;
  task.logits_type = static_cast<cuda::NumberType>(halting_type("logits", z));
  task.halting_type = static_cast<cuda::NumberType>(halting_type("halting_logits", u));
  task.logits = z.const_data_ptr();
  task.logits_stride = z.stride(0);
  task.halting = u.const_data_ptr();
  task.halting_stride = u.stride(0);
  task.delta = delta;
  task.in_double = task.logits_type == cuda::NumberType::float64 || task.halting_type == cuda::NumberType::float64;
  if (valid.has_value()) {
    if (!valid->is_cuda() || valid->get_device_index() != logits.get_device_index() ||
        valid->scalar_type() != ScalarType::Bool || valid->numel() != task.units * task.tokens) {
      fail({"halting_exit: valid has shape ", shape_of(*valid), ", not bool of the rows' shape on their device"});
    }
    const Tensor& dense = call.keep(contiguous(*valid));
    task.valid = static_cast<const unsigned char*>(dense.const_data_ptr());
  }
  std::vector<std::int64_t> units_shape, answer_shape;
  for (std::int64_t d = 1; d < u.dim(); ++d) units_shape.push_back(u.size(d));
  for (std::int64_t d = 1; d < z.dim(); ++d) answer_shape.push_back(z.size(d));
  const ScalarType type = task.in_double ? ScalarType::Double : ScalarType::Float;
  Tensor exit_block = new_beside(z, units_shape, ScalarType::Long);
  Tensor log_answer = new_beside(z, answer_shape, type);
  Tensor full_log_answer = new_beside(z, answer_shape, type);
  task.exit_block = static_cast<std::int64_t*>(exit_block.mutable_data_ptr());
  task.log_answer = log_answer.mutable_data_ptr();
  task.full_log_answer = full_log_answer.mutable_data_ptr();
  task.scratch = call.room<double>(cuda::exit_scratch(task));
  call.check(cuda::halting_exit(task, call.stream()));
  stack.give({&exit_block, &log_answer, &full_log_answer});
}

inline void implement_cuda_halting(Library& m) {
  m.impl("halting_loss", boxed<cuda_halting_loss_op>);
  m.impl("halting_loss_unrecorded", boxed<cuda_halting_loss_op>);
  m.impl("halting_loss_", boxed<cuda_halting_loss_in_place_op>);
  m.impl("halting_loss_backward", boxed<cuda_halting_loss_backward_op>);
  m.impl("halting_loss_backward_", boxed<cuda_halting_loss_backward_in_place_op>);
  m.impl("halting_exit", boxed<cuda_halting_exit_op>);
}

}  // namespace ptrain::glue

#pragma GCC visibility pop

#endif  // PTRAIN_CUDA
