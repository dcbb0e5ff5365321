// The halting loss with its gradients, and the exit rule, on tensors in device memory.
//
// The equations stand in plugin_trainer/ops/halting/reference.py. N blocks, U halting units (rows, or
// sentences), T tokens per unit (1 for rows), R = U T rows, C classes.
#pragma once

#include "launch.h"

namespace ptrain::cuda {

enum class NumberType : std::int32_t { float32 = 0, bfloat16 = 1, float16 = 2, float64 = 3, int64 = 4, int32 = 5 };

// Numbers in device memory, `step` apart (0: one for all), or one number that the host knows.
struct Numbers {
  const void* values = nullptr;  // null: `all`
  NumberType type = NumberType::float32;
  std::int64_t step = 0;
  double all = 0.0;
};

enum class Reduction : std::int32_t { mean = 0, sum = 1, none = 2, given_mean = 3 };

struct HaltingTask {
  std::int64_t blocks, units, tokens, classes;  // N and C >= 1, the others may be 0

  const void* logits;  // [N, U, T, C], dense but for the blocks, which lie logits_stride elements apart
  NumberType logits_type;
  NumberType halting_type;
  std::int64_t logits_stride;
  const void* halting;  // [N, U], likewise
  std::int64_t halting_stride;

  // One kind of labels: class numbers (int64 or int32), or a distribution per row.
  const void* labels;  // [U, T]
  NumberType labels_type;
  NumberType soft_type;
  std::int64_t ignore_index;
  const void* soft_labels;  // [U, T, C], or null

  Numbers class_weight;  // per class
  double label_smoothing;
  Numbers alpha, beta, eta;  // per block
  // The units that are regularised: bool per unit, or per row (then a unit counts if any of its rows does), or
  // null: those with a label.
  const unsigned char* mask;
  bool mask_is_per_row;
  bool has_eta;

  // Whether sums are kept, and results written, in float64. Needed if an input is float64.
  bool in_double;

  // What sums are divided by: counted here for a mean, given for given_mean, else 1.
  bool empty_is_zero;
  Reduction reduction;
  double tau;
  Numbers row_count, unit_count;

  // What comes from above: by the loss and by each of its parts, per unit or row, or one for all.
  Numbers grad_loss, grad_task, grad_supervision, grad_regulariser;

  // Results, each null if not wanted. The gradients have the type of what they are by; grad_logits may be logits
  // itself. The others are float, or double with in_double. The four parts are one number each, or with no
  // reduction one for each row (task, supervision) or unit (regulariser, loss).
  void* grad_logits;
  std::int64_t grad_logits_stride;
  void* grad_halting;  // [N, U], dense
  void* task;
  void* supervision;
  void* regulariser;
  void* loss;
  void* log_answer;    // [U, T, C]
  void* halting_p;     // [N, U]
  void* exit_weights;  // [N, U]

  double* scratch;  // halting_scratch(task) doubles
};

// How many doubles of device memory halting_loss works in.
std::int64_t halting_scratch(const HaltingTask& task);

// Why halting_loss cannot do this task, or null. More blocks than a thread block has memory for: 1024 at least.
const char* halting_refusal(const HaltingTask& task);

// Every result that is wanted, in a few launches, the rows in one. A label that is no class makes its row's loss
// and gradients NaN, and so the sums: no memory outside of the arrays is read.
Failure halting_loss(const HaltingTask& task, Stream stream);

struct ExitTask {
  std::int64_t blocks, units, tokens, classes;  // blocks >= 1, classes >= 2
  const void* logits;                           // as in HaltingTask
  NumberType logits_type;
  NumberType halting_type;
  std::int64_t logits_stride;
  const void* halting;
  std::int64_t halting_stride;
  const unsigned char* valid;  // bool [U, T], or null: all
  double delta;
  bool in_double;  // whether the answers are written as double or float

  std::int64_t* exit_block;  // [U], from 1 to blocks
  void* log_answer;          // [U, T, C]
  void* full_log_answer;     // [U, T, C]

  double* scratch;  // exit_scratch(task) doubles
};

std::int64_t exit_scratch(const ExitTask& task);

// In double throughout. A unit's result depends on no other unit, to the last bit.
Failure halting_exit(const ExitTask& task, Stream stream);

}  // namespace ptrain::cuda
