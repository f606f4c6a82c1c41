// RMSNorm of rows: T tokens of K entries. Computed in float32 and rounded once.
#pragma once

#include "pyft/ops/context.h"
#include "pyft/tensor_ref.h"

namespace pyft {

// s = 1 / sqrt(mean_k x[k]^2 + eps),   y[k] = s x[k] (weight_offset + weight[k])
struct RmsNormArgs {
  TensorRef x;            // float32 or bfloat16 [T, K], contiguous
  TensorRef weight;       // x's dtype [K], contiguous
  TensorRef y;            // out: x's dtype [T, K], contiguous
  TensorRef inverse_rms;  // out: float32 [T]
  double eps;
  double weight_offset;  // 0, or 1 where the weight is stored less 1 (Gemma)
};
void rms_norm(const RmsNormArgs& args, const ExecutionContext& context);

// With n = s x and g = dY (weight_offset + weight):
//     dX[k] = s (g[k] - n[k] mean_j g[j] n[j]),   dWeight[k] = sum_t dY[k] n[k]
struct RmsNormBackwardArgs {
  TensorRef grad_y;       // x's dtype [T, K], contiguous
  TensorRef x;            // float32 or bfloat16 [T, K], contiguous
  TensorRef weight;       // x's dtype [K], contiguous
  TensorRef inverse_rms;  // float32 [T], from the forward
  TensorRef grad_x;       // out: x's dtype [T, K], contiguous
  TensorRef grad_weight;  // out: x's dtype [K], contiguous; or None
  TensorRef partials;  // workspace: float32 [P, K], P >= 1, contiguous; or None. Each of the P rows sums the
                       // weight's gradient over ceil(T / P) tokens, so P decides the bits.
  double weight_offset;
};
void rms_norm_backward(const RmsNormBackwardArgs& args, const ExecutionContext& context);

}  // namespace pyft
