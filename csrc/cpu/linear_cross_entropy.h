// What the ways of computing linear_cross_entropy share: by chunks of tokens with all their logits
// (linear_cross_entropy.cpp), by panels of the vocabulary in one pass (linear_cross_entropy_panels.cpp) or in
// two (linear_cross_entropy_two_passes.cpp).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "pyft/ops.h"

namespace pyft::cpu {

// Rows of hidden that have a target, a part of all of them.
struct CountedRows {
  const std::int64_t* rows;  // which rows of T
  std::int64_t count;
};

// All rows that have a target.
std::vector<std::int64_t> find_counted(const TensorRef& targets, std::int64_t ignore_index);

// out [count, K] = those rows of hidden, as float32.
void gather_hidden(const TensorRef& hidden, const CountedRows& counted, float* out);

// The largest logit so far and sum of exp(logit - max), of a row seen piece by piece.
struct RowState {
  float max = -HUGE_VALF;
  double sum = 0.0;

  // Takes in one more piece; returns exp(old max - new max), which is what earlier sums shrink by.
  double add(float piece_max, double piece_sum) {
    const float new_max = std::max(max, piece_max);
    const double kept = sum == 0.0 ? 0.0 : std::exp(static_cast<double>(max) - new_max);
    sum = sum * kept + piece_sum * std::exp(static_cast<double>(piece_max) - new_max);
    max = new_max;
    return kept;
  }
};

// The state of row i over all splits; states [num_splits, count]. Merged in order.
RowState merged_state(const RowState* states, std::int64_t num_splits, std::int64_t count, std::int64_t i);

// Each row's loss, and its row of grad_hidden if that is wanted; at most plan.chunk_tokens rows.
void linear_cross_entropy_panels(const LinearCrossEntropyArgs& args, const LinearCrossEntropyPlan& plan,
                                 const CountedRows& counted, double* row_loss, int num_threads);

}  // namespace pyft::cpu
