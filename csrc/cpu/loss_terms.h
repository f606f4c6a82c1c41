// The arithmetic of LossTerms (ops.h) for one row, shared by cross_entropy and linear_cross_entropy.
#pragma once

#include <cmath>
#include <cstdint>

#include "pyft/ops.h"

namespace pyft::cpu {

// A row of logits as the loss sees it.
struct RowSums {
  float max = -HUGE_VALF;  // the largest logit
  double sum = 0.0;        // of exp(logit - max)
  double total = 0.0;      // of the logits; counted only with label smoothing

  // Keeping max and sum apart, not only this, keeps logit - max exact for the entries that matter.
  double log_sum_exp() const { return max + std::log(sum); }
};

inline double loss_of_row(const LossTerms& terms, const RowSums& row, double target_logit,
                          std::int64_t vocabulary) {
  double loss = std::log(row.sum) - (target_logit - row.max);
  if (terms.label_smoothing != 0.0) {
    loss += terms.label_smoothing * (target_logit - row.total / static_cast<double>(vocabulary));
  }
  if (terms.z_loss != 0.0) loss += terms.z_loss * row.log_sum_exp() * row.log_sum_exp();
  return loss;
}

// d loss / d logit = softmax * softmax_weight - target_weight [v == target] - uniform_weight.
inline double softmax_weight(const LossTerms& terms, double log_sum_exp) {
  return terms.z_loss == 0.0 ? 1.0 : 1.0 + 2.0 * terms.z_loss * log_sum_exp;
}
inline double target_weight(const LossTerms& terms) { return 1.0 - terms.label_smoothing; }
inline double uniform_weight(const LossTerms& terms, std::int64_t vocabulary) {
  return terms.label_smoothing / static_cast<double>(vocabulary);
}

}  // namespace pyft::cpu
