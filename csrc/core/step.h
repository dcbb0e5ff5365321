// Gradient clipping, AdamW and the moving average of many tensors in one pass over memory, without torch.
#pragma once

#include <cstdint>

#include "parallel.h"
#include "step_types.h"

namespace ptrain {

// One tensor: dense, all of its parts in the same order of elements, none overlapping another. The
// weight and the gradient have this type; the other parts are double for float64 and float otherwise.
struct StepTensor {
  void* weight;
  void* gradient;    // null: none this time, the weight stays and only its average moves
  void* exp_avg;     // first moment
  void* exp_avg_sq;  // second moment
  float* step;       // one number: the updates that this tensor has had
  void* shadow;      // the average of the weight; null if it has none
  std::int64_t size;  // elements; if 0, no pointer but step is followed (a gradient counts if not null)
  FloatType type;
  std::int32_t group;  // whose settings it takes
};

// The settings of a group of tensors, as in torch.optim.AdamW, and the decay of the average, in [0, 1].
struct StepGroup {
  double learning_rate;
  double beta1;
  double beta2;
  double eps;
  double weight_decay;
  double average_decay;
};

// What the gradients are multiplied with, so that their norm is at most max_norm: 1 if it is already, or
// if max_norm is 0 or less. As torch.nn.utils.clip_grad_norm_: max_norm / (norm + 1e-6).
double clip_factor(double norm, double max_norm);

// One step of every tensor, with t its count of steps after this one:
//
//   g = clip * gradient
//   m = beta1 m + (1 - beta1) g
//   v = beta2 v + (1 - beta2) g^2
//   w = (1 - lr weight_decay) w - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
//   shadow = decay shadow + (1 - decay) w
//
// (Loshchilov and Hutter, "Decoupled weight decay regularization", algorithm 2, as torch.optim.AdamW
// orders it.) 16-bit weights are read and written once, rounded to nearest even; the average takes the
// weight as it was written. With zero_gradients the gradients are set to zero in the same pass. Each
// element is computed by itself: the number of threads changes no bit.
void fused_step(const StepTensor* tensors, std::int64_t count, const StepGroup* groups, double clip,
                bool zero_gradients, ParallelFor parallel_for = serial_for);

}  // namespace ptrain
