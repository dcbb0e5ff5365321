// The halting loss and its gradients in one pass over the logits, and the exit rule, without torch.
//
// The equations stand in plugin_trainer/ops/halting/reference.py, which is the same arithmetic in torch.
// N blocks, U halting units (rows, or sentences), T tokens per unit (1 for rows), C classes.
#pragma once

#include <cstdint>

#include "parallel.h"

namespace ptrain {

enum class HaltingType : std::int32_t { float32 = 0, bfloat16 = 1, float16 = 2, float64 = 3 };

inline std::int64_t bytes_of(HaltingType type) {
  return type == HaltingType::float64 ? 8 : type == HaltingType::float32 ? 4 : 2;
}

// One number per row or unit, or (step 0) one for all.
struct Upstream {
  const double* values = nullptr;
  std::int64_t step = 0;
};

struct HaltingTask {
  std::int64_t blocks, units, tokens, classes;  // C >= 1, all others may be 0

  const void* logits;  // [N, U, T, C], dense but for the blocks, which lie logits_stride elements apart
  HaltingType logits_type;
  std::int64_t logits_stride;
  const void* halting;  // [N, U], likewise
  HaltingType halting_type;
  std::int64_t halting_stride;

  // One kind of labels: class numbers (int64 or int32), or a distribution per row.
  const void* labels = nullptr;  // [U, T]
  bool labels_are_int32 = false;
  std::int64_t ignore_index = -100;
  const void* soft_labels = nullptr;  // [U, T, C]
  HaltingType soft_type = HaltingType::float32;

  const double* class_weight = nullptr;  // [C], or all 1
  double label_smoothing = 0.0;
  const double* alpha;          // [N]
  const double* beta;           // [N]
  const double* eta = nullptr;  // [N], or all 0
  // The units that are regularised: bool per unit, or per row (then a unit counts if any of its rows
  // does), or null: those with a label.
  const unsigned char* mask = nullptr;
  bool mask_is_per_row = false;

  // Whether sums are kept, and results written, in float64. Needed if an input is float64.
  bool in_double = false;

  // What the gradients are multiplied by: per row, per row, per unit. Read only with gradients.
  Upstream grad_task, grad_supervision, grad_regulariser;

  // Results, each null if not wanted. The gradients have the type of what they are by; grad_logits may be
  // logits itself. The others are float, or double with in_double.
  void* grad_logits = nullptr;
  std::int64_t grad_logits_stride = 0;
  void* grad_halting = nullptr;  // [N, U], dense
  void* task = nullptr;          // [U, T]
  void* supervision = nullptr;   // [U, T]
  void* regulariser = nullptr;   // [U]
  void* log_answer = nullptr;    // [U, T, C]
  void* halting_p = nullptr;     // [N, U]
  void* exit_weights = nullptr;  // [N, U]
};

struct HaltingSums {
  double task = 0.0, supervision = 0.0, regulariser = 0.0;
};

// What the denominators of a mean are, from the labels alone.
struct HaltingCounts {
  double rows = 0.0;   // the weight of the rows with a label
  double units = 0.0;  // the regularised units
  bool has_wrong_label = false;
  std::int64_t wrong_label = 0;  // the first one that is no class
};

HaltingCounts halting_counts(const HaltingTask& task);

// The loss's sums over rows and units, and every result that is wanted. Labels must be classes or
// ignore_index: see halting_counts. No bit of any result depends on the number of threads.
HaltingSums halting_loss(const HaltingTask& task, ParallelFor parallel_for = serial_for);

}  // namespace ptrain
