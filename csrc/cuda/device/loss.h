// The arithmetic of LogitTerms and LossTerms (ops.h) for one row, and one logit, on a GPU.
#pragma once

#include "cuda/device/platform.h"
#include "pyft/ops.h"

namespace pyft::cuda {

constexpr float kLowest = -3.4028235e38f;

__device__ __forceinline__ float not_a_number() { return __uint_as_float(0x7fc00000u); }

// The numbers of LossTerms, ready for use.
struct Terms {
  float smoothing, uniform, z_loss;  // uniform = smoothing / V
};
inline Terms terms_of(const LossTerms& terms, std::int64_t vocabulary) {
  return {static_cast<float>(terms.label_smoothing),
          static_cast<float>(terms.label_smoothing / static_cast<double>(vocabulary)),
          static_cast<float>(terms.z_loss)};
}

// From a product to its logit, and the logit's derivative.
struct Logits {
  float scale, softcap, inverse_softcap;  // 0, 0 for no cap

  __device__ __forceinline__ float operator()(float product, float bias) const {
    const float scaled = scale * (product + bias);
    return softcap == 0.0f ? scaled : softcap * tanhf(scaled * inverse_softcap);
  }
  __device__ __forceinline__ float cap_slope(float logit) const {
    const float share = logit * inverse_softcap;
    return softcap == 0.0f ? 1.0f : 1.0f - share * share;  // of -inf too
  }
};
inline Logits logits_of(const LogitTerms& terms) {
  return {static_cast<float>(terms.scale), static_cast<float>(terms.softcap),
          terms.softcap == 0.0 ? 0.0f : static_cast<float>(1.0 / terms.softcap)};
}

// Sums over one row: the logit that exponents are taken against, the exponentials, the logits.
struct RowSums {
  float reference, sum, total;
};

__device__ __forceinline__ float loss_of_row(const Terms& terms, const RowSums& row, float target_logit,
                                             std::int64_t vocabulary) {
  const float log_sum = logf(row.sum), log_sum_exp = row.reference + log_sum;
  float loss = log_sum - (target_logit - row.reference);
  if (terms.smoothing != 0.0f)
    loss += terms.smoothing * (target_logit - row.total / static_cast<float>(vocabulary));
  return loss + terms.z_loss * log_sum_exp * log_sum_exp;
}

// d loss / d logit, of a softmax that gives the logit this share; extra = 2 z_loss lse.
__device__ __forceinline__ float logit_gradient(const Terms& terms, float share, float extra,
                                                bool is_target) {
  // In this order: near 1 the share and the target cancel, and what is left is small.
  const float plain = is_target ? (share - 1.0f) + (terms.smoothing - terms.uniform) : share - terms.uniform;
  return plain + share * extra;
}

}  // namespace pyft::cuda
