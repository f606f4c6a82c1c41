// The rotary embedding of queries and keys: B rows of T tokens, H or G heads of D entries. Computed in
// float32 and rounded once.
#pragma once

#include "pyft/ops/context.h"
#include "pyft/tensor_ref.h"

namespace pyft {

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
