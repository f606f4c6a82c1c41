// THE interface: every operation of pyft, as argument structs and functions. Shapes stand beside each field.
// T tokens, K in-features, N out-features, R rank, V vocabulary, B blocks of 64 weights, C = ceil(B / 256).
//
// Each function validates its arguments (throws pyft::Error), chooses the device by its tensors, and returns
// when the work is done (CPU) or queued on the given stream (CUDA). Outputs are allocated by the caller.
#pragma once

#include <cstdint>

#include "pyft/tensor_ref.h"

namespace pyft {

// Where the work runs. Always given, never defaulted: a forgotten stream is a race.
struct ExecutionContext {
  int num_threads;        // CPU: how many threads may work, the calling one included
  std::uintptr_t stream;  // CUDA: the raw cudaStream_t
};

// ---- NF4
// -------------------------------------------------------------------------------------------------------

// A weight [N, K] in NF4; the layout is drawn in nf4_format.h. Either absmax or the three nested parts are
// defined.
struct Nf4Tensors {
  TensorRef codes;           // uint8 [ceil(N * K / 2)]
  TensorRef absmax;          // float32 [B], or None when nested
  TensorRef absmax_codes;    // uint8 [B], or None
  TensorRef nested_absmax;   // float32 [C], or None
  TensorRef offset;          // float32, one element, or None
  std::int64_t num_rows;     // N
  std::int64_t num_columns;  // K
};

struct Nf4QuantizeArgs {
  TensorRef weight;  // float32 or bfloat16, any shape, contiguous
  TensorRef codes;   // out: uint8 [ceil(numel / 2)]
  TensorRef absmax;  // out: float32 [B]
};
void nf4_quantize(const Nf4QuantizeArgs& args, const ExecutionContext& context);

struct Nf4QuantizeAbsmaxArgs {
  TensorRef absmax;         // float32 [B]
  TensorRef given_offset;   // float32, one element, or None for the mean of absmax, summed in float64
  TensorRef absmax_codes;   // out: uint8 [B]
  TensorRef nested_absmax;  // out: float32 [C]
  TensorRef offset;         // out: float32, one element, what was subtracted
};
// The second quantisation: absmax - offset to 8 bits in blocks of 256.
void nf4_quantize_absmax(const Nf4QuantizeAbsmaxArgs& args, const ExecutionContext& context);

struct Nf4DequantizeArgs {
  Nf4Tensors weight;
  TensorRef out;  // out: float32 or bfloat16 [N, K], contiguous
};
void nf4_dequantize(const Nf4DequantizeArgs& args, const ExecutionContext& context);

struct Nf4LinearArgs {
  TensorRef x;          // float32 or bfloat16 [T, K], contiguous
  Nf4Tensors weight;    // [N, K]; dequantised values are rounded to x's dtype
  TensorRef bias;       // x's dtype [N], or None
  TensorRef y;          // out: x's dtype [T, N], contiguous
  TensorRef workspace;  // CUDA: float32 [S, T, N], K is then summed in S parts at the same time; or None
};
// y = x W^T + bias, accumulated in float32. On CUDA for bfloat16 and T <= 64 only.
void nf4_linear(const Nf4LinearArgs& args, const ExecutionContext& context);

struct Nf4LinearBackwardArgs {
  TensorRef grad_y;     // float32 or bfloat16 [T, N], contiguous
  Nf4Tensors weight;    // [N, K]
  TensorRef grad_x;     // out: grad_y's dtype [T, K], contiguous
  TensorRef workspace;  // CUDA: float32 [S, T, K], N is then summed in S parts at the same time; or None
};
// dX = dY W, accumulated in float32. On CUDA for bfloat16 and T <= 64 only.
void nf4_linear_backward(const Nf4LinearBackwardArgs& args, const ExecutionContext& context);

// ---- LoRA
// ------------------------------------------------------------------------------------------------------

// The frozen weight [N, K] of a layer with an adapter: dense, or NF4 (then `dense` is None).
struct LoraBase {
  TensorRef dense;  // float32 or bfloat16 [N, K], contiguous
  Nf4Tensors nf4;   // dequantised values are rounded to x's dtype
};

// drop(x)[t, k] = x[t, k] / (1 - probability), or 0: a pure function of (seed, t * K + k); see
// cpu/lora_kernels.cpp.
struct Dropout {
  double probability;  // in [0, 1); 0 switches it off
  std::uint64_t seed;
};

struct LoraLinearArgs {
  TensorRef x;  // float32 or bfloat16 [T, K], contiguous
  LoraBase weight;
  TensorRef bias;       // x's dtype [N], or None
  TensorRef lora_A;     // float32 [R, K], contiguous
  TensorRef lora_B;     // float32 [N, R], contiguous
  TensorRef projected;  // out: float32 [T, R], contiguous: scaling * drop(x) A^T, kept for the backward
  TensorRef y;          // out: x's dtype [T, N], contiguous
  double scaling;
  Dropout dropout;
};
// y = x W^T + bias + scaling * drop(x) A^T B^T, accumulated in float32 and rounded once.
void lora_linear(const LoraLinearArgs& args, const ExecutionContext& context);

struct LoraLinearBackwardArgs {
  TensorRef grad_y;  // float32 or bfloat16 [T, N], contiguous
  TensorRef x;       // grad_y's dtype [T, K], contiguous
  LoraBase weight;
  TensorRef lora_A;          // float32 [R, K], contiguous
  TensorRef lora_B;          // float32 [N, R], contiguous
  TensorRef projected;       // float32 [T, R], from the forward
  TensorRef grad_projected;  // workspace: float32 [T, R], contiguous
  TensorRef grad_x;          // out: x's dtype [T, K], contiguous, or None when not wanted
  TensorRef grad_A;          // out: float32 [R, K], contiguous, or None
  TensorRef grad_B;          // out: float32 [N, R], contiguous, or None
  double scaling;
  Dropout dropout;
};
// With dS = scaling * dY B:  dX = dY W + drop'(dS A),  dA = dS^T drop(x),  dB = dY^T projected.
void lora_linear_backward(const LoraLinearBackwardArgs& args, const ExecutionContext& context);

// ---- Cross-entropy
// ---------------------------------------------------------------------------------------------

// What each counted row of logits l with target y loses. With both numbers 0 it is the plain cross-entropy.
//
//     lse - (1 - label_smoothing) l[y] - label_smoothing / V sum_v l[v] + z_loss lse^2,
//     lse = log(sum_v exp(l[v]))
struct LossTerms {
  double label_smoothing;  // in [0, 1]: torch's, the share of the target spread over all V ids
  double z_loss;           // >= 0: draws the softmax's normaliser towards 1
};

// A row counts when its target is not ignore_index. Rows that do not count are never read.
struct CrossEntropyArgs {
  TensorRef logits;   // float32 or bfloat16 [T, V], contiguous
  TensorRef targets;  // int64 [T], contiguous; each ignore_index or in [0, V)
  TensorRef loss;     // out: float32, one element
  TensorRef
      row_stats;  // out: float32 [T, 2]: largest logit, and sum of exp(logit - largest); zeros if not counted
  std::int64_t ignore_index;
  LossTerms terms;
  TensorRef row_losses;  // CUDA: workspace, float32 [T]; or None
};
// loss = sum over counted rows of what LossTerms says.
void cross_entropy(const CrossEntropyArgs& args, const ExecutionContext& context);

struct CrossEntropyBackwardArgs {
  TensorRef grad_loss;    // float32, one element
  TensorRef logits;       // float32 or bfloat16 [T, V], contiguous
  TensorRef targets;      // int64 [T], contiguous
  TensorRef row_stats;    // float32 [T, 2], from the forward
  TensorRef grad_logits;  // out: logits' dtype [T, V], contiguous; zeros where a row does not count
  std::int64_t ignore_index;
  LossTerms terms;
};
// With s = label_smoothing:
// dLogits = (softmax(logits) (1 + 2 z_loss lse) - (1 - s) one_hot(targets) - s / V) * dLoss.
void cross_entropy_backward(const CrossEntropyBackwardArgs& args, const ExecutionContext& context);

// From products to logits: l = cap(scale (hidden head_weight^T + bias)), cap(x) = softcap tanh(x / softcap).
struct LogitTerms {
  TensorRef bias;  // hidden's dtype [V], or None
  double scale;
  double softcap;  // > 0, or 0 for no cap
};

// How linear_cross_entropy cuts its work; depends on the shape and on what is asked for, not on values.
struct LinearCrossEntropyPlan {
  bool by_panels;                 // panels of the vocabulary instead of all logits of a chunk
  bool by_two_passes;             // call linear_cross_entropy_forward and _backward instead
  std::int64_t chunk_tokens;      // rows worked on at one time
  std::int64_t num_splits;        // partial sums of dHidden over the vocabulary
  std::int64_t workspace_floats;  // of all buffers together
  std::int64_t kept_rows;         // R: of how many rows linear_cross_entropy_forward should keep the logits
};
LinearCrossEntropyPlan plan_linear_cross_entropy(std::int64_t num_tokens, std::int64_t width,
                                                 std::int64_t vocabulary, bool trains_head, bool smooths);

struct LinearCrossEntropyArgs {
  TensorRef hidden;       // float32 or bfloat16 [T, K], contiguous
  TensorRef head_weight;  // hidden's dtype [V, K], contiguous
  TensorRef targets;      // int64 [T], contiguous
  TensorRef workspace;    // float32 [workspace_floats of the plan]
  TensorRef loss;         // out: float32, one element
  TensorRef grad_hidden;  // out: float32 [T, K], contiguous, or None when not wanted; zeros where a row does
                          // not count
  TensorRef grad_head;    // out: float32 [V, K], contiguous, or None when not wanted
  TensorRef grad_bias;    // out: float32 [V], contiguous, or None when not wanted
  std::int64_t ignore_index;
  LogitTerms logits;
  LossTerms terms;
};
// The loss of the logits and its gradients for dLoss = 1. Logits exist for one chunk at a time. The caller
// heeds the plan: by_two_passes is for the functions below.
LinearCrossEntropyPlan plan_linear_cross_entropy(const LinearCrossEntropyArgs& args);
void linear_cross_entropy(const LinearCrossEntropyArgs& args, const ExecutionContext& context);

// The same in two calls, which never hold the head's gradient in float32.
struct LinearCrossEntropyForwardArgs {
  TensorRef hidden;       // float32 or bfloat16 [T, K], contiguous
  TensorRef head_weight;  // hidden's dtype [V, K], contiguous
  TensorRef targets;      // int64 [T], contiguous
  TensorRef workspace;    // float32 [T * K]
  TensorRef loss;         // out: float32, one element
  TensorRef row_stats;    // out: float32 [T, 2], as cross_entropy's
  TensorRef kept_logits;  // out: float32 [R, V], any R: what the backward need not compute again
  std::int64_t ignore_index;
  LogitTerms logits;
  LossTerms terms;
};
void linear_cross_entropy_forward(const LinearCrossEntropyForwardArgs& args, const ExecutionContext& context);

std::int64_t linear_cross_entropy_backward_floats(std::int64_t num_tokens, std::int64_t width);

struct LinearCrossEntropyBackwardArgs {
  TensorRef grad_loss;    // float32, one element
  TensorRef hidden;       // as in the forward, and so on
  TensorRef head_weight;  // [V, K]
  TensorRef targets;      // [T]
  TensorRef row_stats;    // [T, 2]
  TensorRef kept_logits;  // [R, V]
  TensorRef workspace;    // float32 [linear_cross_entropy_backward_floats]
  TensorRef grad_hidden;  // out: hidden's dtype [T, K], contiguous, or None; zeros where a row does not count
  TensorRef grad_head;    // out: head_weight's dtype [V, K], contiguous, or None
  TensorRef grad_bias;    // out: head_weight's dtype [V], contiguous, or None
  std::int64_t ignore_index;
  LogitTerms logits;
  LossTerms terms;
};
void linear_cross_entropy_backward(const LinearCrossEntropyBackwardArgs& args,
                                   const ExecutionContext& context);

}  // namespace pyft
