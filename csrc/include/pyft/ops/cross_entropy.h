// Cross-entropy over the rows that have a target, from logits and from hidden states. Shapes by letter as in
// ops.h.
#pragma once

#include "pyft/ops/context.h"
#include "pyft/tensor_ref.h"

namespace pyft {

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
