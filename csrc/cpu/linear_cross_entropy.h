// What the two ways of computing linear_cross_entropy share: by chunks of tokens with all their logits
// (linear_cross_entropy.cpp), or by panels of the vocabulary (linear_cross_entropy_panels.cpp).
#pragma once

#include <cstdint>

#include "pyft/ops.h"

namespace pyft::cpu {

// Rows of hidden that have a target, a part of all of them.
struct CountedRows {
  const std::int64_t* rows;  // which rows of T
  std::int64_t count;
};

// out [count, K] = those rows of hidden, as float32.
void gather_hidden(const LinearCrossEntropyArgs& args, const CountedRows& counted, float* out);

// Each row's loss, and its row of grad_hidden if that is wanted; at most plan.chunk_tokens rows.
void linear_cross_entropy_panels(const LinearCrossEntropyArgs& args, const LinearCrossEntropyPlan& plan,
                                 const CountedRows& counted, double* row_loss, int num_threads);

}  // namespace pyft::cpu
