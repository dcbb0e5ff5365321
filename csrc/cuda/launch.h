// The CUDA kernels as plain functions of device pointers: no torch, no CUDA header, no wait for the device.
//
// Each function puts its kernels into the stream and returns: nullptr, or what CUDA said in words. None
// allocates memory or reads any back, so all of them can be captured in a CUDA graph. Every sum is formed in a
// fixed order, without atomic operations: the same call gives the same bits.
#pragma once

#include <cstdint>

namespace ptrain::cuda {

using Stream = void*;  // a cudaStream_t
using Failure = const char*;  // nullptr: it went in

enum class Type : std::int32_t {
  float32 = 0,
  bfloat16 = 1,
  float16 = 2,
  float64 = 3,
  bytes = 4,  // for the average alone: copied, one element per byte
};

// ------------------------------------------------------------------------------------------------ tables
// The tensors of a model come as a table of rows in device memory. A row has a size in elements and is worked
// on in chunks; first_chunk counts the chunks of the rows before it. A row without elements has no chunk: it
// may stay in a table, but costs a look.

// Elements per chunk, one block of threads each. Few elements are cut finer, so that all of the device works.
inline std::int64_t chunk_size(std::int64_t elements) { return elements < (8 << 20) ? 4096 : 16384; }

// Numbers the chunks of rows [0, count) and returns how many there are in all.
template <typename Row>
std::int64_t number_chunks(Row* rows, std::int64_t count, std::int64_t elements_per_chunk) {
  std::int64_t chunks = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    rows[i].first_chunk = static_cast<std::int32_t>(chunks);
    chunks += (rows[i].size + elements_per_chunk - 1) / elements_per_chunk;
  }
  return chunks;
}

// Copies bytes (a multiple of 16) from the host into device memory. They travel as arguments of a kernel: the
// host memory is free again on return, nothing needs to be pinned, and a captured graph writes them again at
// each replay.
Failure write(void* device, const void* host, std::int64_t bytes, Stream stream);

// Whether the stream is being captured into a CUDA graph.
bool is_capturing(Stream stream);

// ------------------------------------------------------------------------------------ the moving average
struct EmaRow {
  void* shadow;        // float, or double for float64 weights, or bytes
  const void* weight;  // of the type
  std::int64_t size;
  std::int32_t first_chunk;
  Type type;
};
static_assert(sizeof(EmaRow) == 32);

// shadow += (1 - decay) * (weight - shadow) for all rows, in one launch.
//
// decay_on_device, if not null, is read there in place of decay.
Failure ema_update(const EmaRow* rows, std::int64_t count, std::int64_t chunks, std::int64_t elements_per_chunk,
                   double decay, const double* decay_on_device, Stream stream);

// --------------------------------------------------------------------------------------------- the norm
struct NormRow {
  const void* data;
  std::int64_t size;
  std::int32_t first_chunk;
  Type type;
  std::int64_t unused;
};
static_assert(sizeof(NormRow) == 32);

// *norm = sqrt(sum of squares of all elements), each square and each sum in double. partials has room for one
// double per chunk. The bits depend on sizes and values alone, not on where the tensors lie.
Failure norm(const NormRow* rows, std::int64_t count, std::int64_t chunks, std::int64_t elements_per_chunk,
             double* partials, double* norm, Stream stream);

// --------------------------------------------------------------------------------------------- the step
struct StepRow {
  void* parameter;       // of the type
  void* gradient;        // of the type; null: AdamW passes the parameter by, its average still moves
  void* exp_avg;         // float, or double for float64
  void* exp_avg_sq;      // likewise
  void* shadow;          // likewise; null: no average
  float* step;           // how many steps the parameter has had
  std::int64_t size;
  std::int32_t first_chunk;
  std::int32_t group;    // which row of hyper
  Type type;
  std::int32_t unused[3];
};
static_assert(sizeof(StepRow) == 80);

// Which types of parameters there are among the rows.
struct StepTypes {
  bool float64;
  bool others;
};

// The columns of hyper, float64 [groups, hyper_columns] in device memory.
enum HyperColumn { hyper_lr, hyper_beta1, hyper_beta2, hyper_eps, hyper_weight_decay, hyper_decay, hyper_columns };

// old + weight * (fresh - old) from the nearer end, as torch.lerp: a weight of 1 gives exactly what is fresh.
struct Blend {
  double factor;    // the weight if from_old, else the weight less 1
  double from_old;  // 1 or 0
};

// What all elements of one tensor share in one step, formed in double by the first of the two kernels.
struct StepScalars {
  double go;           // 0: the norm is not finite, touch nothing
  double clip;         // what a gradient is multiplied by
  double keep_weight;  // 1 - lr * weight_decay
  double step_size;    // lr / (1 - beta1^t)
  double beta2;
  double one_minus_beta2;
  double root_correction;  // 1 / sqrt(1 - beta2^t)
  double eps;
  Blend exp_avg;
  Blend shadow;
};
static_assert(sizeof(StepScalars) == 96);

// Clipping, AdamW and the moving average of the new parameter in one pass over memory (two launches, three
// where float64 is among other types: a thread per tensor counts its step and forms the scalars, then a block per
// chunk does the elements).
//
// norm      the gradients' norm in device memory, or null. If it is not finite, nothing is written but the
//           zeros that zero_gradients asks for, and no step is counted
// max_norm  gradients are multiplied by min(1, max_norm / (norm + 1e-6)) where it is above 0 and there is a norm
// scalars   room for one StepScalars per row
Failure step(const StepRow* rows, std::int64_t count, std::int64_t chunks, std::int64_t elements_per_chunk,
             StepTypes types, const double* hyper, const double* norm, double max_norm, bool zero_gradients,
             StepScalars* scalars, Stream stream);

}  // namespace ptrain::cuda
