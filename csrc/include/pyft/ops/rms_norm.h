// What stands between a layer's products: RMSNorm, SwiGLU and the rotary embedding. Shapes by letter as in
// ops.h, and K the width of a row, B rows of T tokens, H heads of D entries. Everything is computed in
// float32 and rounded once.
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

// y = silu(gate) up = gate up / (1 + exp(-gate)), entry by entry.
struct SwigluArgs {
  TensorRef gate;  // float32 or bfloat16, any shape, contiguous
  TensorRef up;    // like gate
  TensorRef y;     // out: like gate
};
void swiglu(const SwigluArgs& args, const ExecutionContext& context);

// With s = 1 / (1 + exp(-gate)):   dGate = dY up s (1 + gate (1 - s)),   dUp = dY gate s.
// Each output may be any of the inputs.
struct SwigluBackwardArgs {
  TensorRef grad_y;     // like gate
  TensorRef gate;       // float32 or bfloat16, any shape, contiguous
  TensorRef up;         // like gate
  TensorRef grad_gate;  // out: like gate
  TensorRef grad_up;    // out: like gate
};
void swiglu_backward(const SwigluBackwardArgs& args, const ExecutionContext& context);

// The first R of a head's D entries are rotated in pairs (x[i], x[i + h]), h = R / 2; the others are copied:
//
//     y[i]     = x[i] cos[i] - x[i + h] sin[i]
//     y[i + h] = x[i + h] cos[i + h] + x[i] sin[i + h]
//
// `transposed` applies the transpose of this matrix, which is the gradient, and for tables whose halves are
// equal the rotation back.
struct RotaryArgs {
  TensorRef q;          // float32 or bfloat16 [B, H, T, D], entries of a head side by side, other strides any
  TensorRef k;          // q's dtype [B, G, T, D], likewise
  TensorRef cos;        // q's dtype [B, T, R], R even and at most D, likewise
  TensorRef sin;        // like cos
  TensorRef rotated_q;  // out: like q, no part of it in q
  TensorRef rotated_k;  // out: like k, no part of it in k
  bool transposed;
};
void rotary(const RotaryArgs& args, const ExecutionContext& context);

}  // namespace pyft
