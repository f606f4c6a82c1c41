// The steps of linear_cross_entropy on CUDA. The matrix products between them are the caller's: it has the
// logits' products [C, P] in a buffer of float32, and the steps turn them into what is multiplied next.
// Shapes by letter as in ops.h; R rows worked on of which some may be unused, C of them at a time, P ids of
// the vocabulary at a time.
#pragma once

#include "pyft/ops/context.h"
#include "pyft/ops/cross_entropy.h"

namespace pyft {

// What all of it starts from: checked, nothing more.
struct LinearCrossEntropyInputs {
  TensorRef hidden;       // float32 or bfloat16 [T, K], contiguous
  TensorRef head_weight;  // hidden's dtype [V, K], contiguous
  TensorRef targets;      // int64 [T], contiguous
  LogitTerms logits;
  LossTerms terms;
};
void check_linear_cross_entropy(const LinearCrossEntropyInputs& inputs);

// The counted rows in order. What is left of R is unused: row -1, target ignore_index.
struct CountedRowsArgs {
  TensorRef targets;      // int64 [T], contiguous
  TensorRef rows;         // out: int64 [R], contiguous
  TensorRef row_targets;  // out: int64 [R], contiguous: the rows' targets
  TensorRef verdict;      // out: float32, one element, to be added to the loss: 0, or NaN if not as expected
  std::int64_t ignore_index;
  bool is_exact;  // R is how many rows count. Where it is not, every target is invalid, so that NaN follows
};
void counted_rows(const CountedRowsArgs& args, const ExecutionContext& context);

// to[i] = from[rows[i]], zeros where rows[i] is -1.
struct GatherRowsArgs {
  TensorRef from;  // float32 or bfloat16 [T, K], contiguous
  TensorRef rows;  // int64 [C], contiguous; -1 or in [0, T)
  TensorRef to;    // out: from's dtype [C, K], contiguous
};
void gather_rows(const GatherRowsArgs& args, const ExecutionContext& context);

// to[rows[i]] = from[i] where rows[i] is not -1; other rows of `to` are left alone.
struct ScatterRowsArgs {
  TensorRef from;  // float32 [C, K], contiguous
  TensorRef rows;  // int64 [C], contiguous; -1 or in [0, T), each at most once
  TensorRef to;    // out: float32 [T, K], contiguous
};
void scatter_rows(const ScatterRowsArgs& args, const ExecutionContext& context);

// Of the products x = hidden head_weight^T of a panel of P ids: the softmax's sums of the panels so far, and
// what the panel's rows of the head are multiplied with. M is what a row's exponents are taken against.
struct LinearCrossEntropyPanelArgs {
  TensorRef products;     // float32 [C, P], P <= 4096, rows contiguous: may be overwritten by `weights`
  TensorRef weights;      // out: hidden's dtype [C, P] in the memory of the products, a row where the
                          // product's begins: exp(l - M) cap'(l), and 0 for the target; or None
  TensorRef row_targets;  // int64 [C], contiguous
  TensorRef row_stats;    // in and out: float32 [C, 4]: M, sum of exp(l - M), target's l, sum of l
  TensorRef sums;         // in and out: float32 [C, K], multiplied by exp(old M - new M); or None
  std::int64_t first_id;  // of the panel; 0 starts over
  std::int64_t ignore_index;
  LogitTerms logits;  // bias: of the panel's P ids
};
void linear_cross_entropy_panel(const LinearCrossEntropyPanelArgs& args, const ExecutionContext& context);

// After the last panel: the rows' losses, and dHidden from sums = weights head_weight. No label smoothing
// where a gradient is wanted: its part is no sum of this kind.
struct LinearCrossEntropyFinishArgs {
  TensorRef row_stats;    // float32 [C, 4]
  TensorRef row_targets;  // int64 [C], contiguous
  TensorRef rows;         // int64 [C], contiguous
  TensorRef head_weight;  // float32 or bfloat16 [V, K], contiguous
  TensorRef sums;         // float32 [C, K], contiguous, or None
  TensorRef row_losses;   // out: float32 [C]
  TensorRef grad_hidden;  // out: float32 [T, K], contiguous: rows `rows`; or None, as sums
  std::int64_t ignore_index;
  LogitTerms logits;  // no bias
  LossTerms terms;
};
void linear_cross_entropy_finish(const LinearCrossEntropyFinishArgs& args, const ExecutionContext& context);

// Of all products of a chunk of rows: their losses, and the gradient in the products' place.
struct LinearCrossEntropyChunkArgs {
  TensorRef products;     // float32 [C, V], rows contiguous: overwritten
  TensorRef gradient;     // out: hidden's dtype [C, V] in the memory of the products, a row where the
                          // product's begins; zeros in unused rows
  TensorRef row_targets;  // int64 [C], contiguous
  TensorRef row_losses;   // out: float32 [C]
  std::int64_t ignore_index;
  LogitTerms logits;
  LossTerms terms;
};
void linear_cross_entropy_chunk(const LinearCrossEntropyChunkArgs& args, const ExecutionContext& context);

}  // namespace pyft
