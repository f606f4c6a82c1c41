// What the ways of computing linear_cross_entropy share: by chunks of tokens with all their logits
// (linear_cross_entropy.cpp), by panels of the vocabulary in one pass (linear_cross_entropy_panels.cpp) or in
// two (linear_cross_entropy_two_passes.cpp).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "cpu/isa.h"
#include "cpu/loss_terms.h"
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

// From products to logits and back, as LogitTerms says.
class Logits {
 public:
  explicit Logits(const LogitTerms& terms)
      : terms_(terms),
        softcap_(static_cast<float>(terms.softcap)),
        inverse_softcap_(softcap_ == 0.0f ? 0.0f : 1.0f / softcap_),
        is_product_(!terms.bias.defined && terms.scale == 1.0 && terms.softcap == 0.0) {}

  // In place: num_rows rows of products for ids [v0, v0 + num_ids), `stride` apart.
  void finish(float* rows, std::int64_t num_rows, std::int64_t v0, std::int64_t num_ids,
              std::int64_t stride) const {
    if (is_product_) return;
    const void* bias =
        terms_.bias.defined ? terms_.bias.as<const char>() + v0 * dtype_bytes(terms_.bias.dtype) : nullptr;
    for (std::int64_t i = 0; i < num_rows; ++i) {
      kernels().row_logits(rows + i * stride, bias, terms_.bias.dtype, num_ids,
                           static_cast<float>(terms_.scale), softcap_);
    }
  }

  // d logit / d product is `scale` times this.
  double cap_slope(float logit) const {
    const double ratio = static_cast<double>(logit) * inverse_softcap_;
    return softcap_ == 0.0f ? 1.0 : 1.0 - ratio * ratio;
  }

  double scale() const { return terms_.scale; }
  float inverse_softcap() const { return inverse_softcap_; }

 private:
  const LogitTerms& terms_;
  float softcap_, inverse_softcap_;
  bool is_product_;
};

// The sums of a row seen piece by piece.
struct RowState : RowSums {
  // Takes in one more piece; returns exp(old max - new max), which is what earlier sums shrink by.
  double add(const RowSums& piece) {
    const float new_max = std::max(max, piece.max);
    const double kept = sum == 0.0 ? 0.0 : std::exp(static_cast<double>(max) - new_max);
    sum = sum * kept + piece.sum * std::exp(static_cast<double>(piece.max) - new_max);
    total += piece.total;
    max = new_max;
    return kept;
  }
};

// Of one piece of a row of logits.
RowSums sums_of(const float* logits, std::int64_t count, const LossTerms& terms);

// The state of row i over all splits; states [num_splits, count]. Merged in order.
RowState merged_state(const RowState* states, std::int64_t num_splits, std::int64_t count, std::int64_t i);

// dLoss / dProduct of row `sums` for ids [v0, v0 + num_ids), times grad_loss; `out` may be `logits`.
void write_gradient(const float* logits, const RowSums& sums, std::int64_t target, std::int64_t v0,
                    std::int64_t num_ids, std::int64_t vocabulary, const Logits& transform,
                    const LossTerms& terms, double grad_loss, float* out);

// The sum of all rows, `stride` apart. In double: a bias sums over every counted token.
std::vector<double> sum_of_rows(const float* rows, std::int64_t num_rows, std::int64_t count,
                                std::int64_t stride);

// Each row's loss, and its row of grad_hidden if that is wanted; at most plan.chunk_tokens rows.
void linear_cross_entropy_panels(const LinearCrossEntropyArgs& args, const LinearCrossEntropyPlan& plan,
                                 const CountedRows& counted, double* row_loss, int num_threads);

}  // namespace pyft::cpu
