// A frozen linear layer with a low-rank addition. Shapes by letter as in ops.h.
#pragma once

#include "pyft/ops/nf4.h"

namespace pyft {

// The frozen weight [N, K] of a layer with an adapter: dense, or NF4 (then `dense` is None).
struct LoraBase {
  TensorRef dense;  // float32 or bfloat16 [N, K], contiguous
  Nf4Tensors nf4;   // dequantised values are rounded to x's dtype
};

// drop(x)[t, k] = x[t, k] / (1 - probability), or 0: a pure function of (seed, t * K + k); see
// cpu/lora_kernels.cpp.
struct Dropout {
  double probability;  // in [0, 1); 0 switches it off
  std::uint64_t seed;
};

struct LoraLinearArgs {
  TensorRef x;  // float32 or bfloat16 [T, K], contiguous
  LoraBase weight;
  TensorRef bias;       // x's dtype [N], or None
  TensorRef lora_A;     // float32 [R, K], contiguous
  TensorRef lora_B;     // float32 [N, R], contiguous
  TensorRef projected;  // out: float32 [T, R], contiguous: scaling * drop(x) A^T, kept for the backward
  TensorRef y;          // out: x's dtype [T, N], contiguous
  double scaling;
  Dropout dropout;
};
// y = x W^T + bias + scaling * drop(x) A^T B^T, accumulated in float32 and rounded once.
void lora_linear(const LoraLinearArgs& args, const ExecutionContext& context);

struct LoraLinearBackwardArgs {
  TensorRef grad_y;  // float32 or bfloat16 [T, N], contiguous
  TensorRef x;       // grad_y's dtype [T, K], contiguous
  LoraBase weight;
  TensorRef lora_A;          // float32 [R, K], contiguous
  TensorRef lora_B;          // float32 [N, R], contiguous
  TensorRef projected;       // float32 [T, R], from the forward
  TensorRef grad_projected;  // workspace: float32 [T, R], contiguous
  TensorRef grad_x;          // out: x's dtype [T, K], contiguous, or None when not wanted
  TensorRef grad_A;          // out: float32 [R, K], contiguous, or None
  TensorRef grad_B;          // out: float32 [N, R], contiguous, or None
  double scaling;
  Dropout dropout;
};
// With dS = scaling * dY B:  dX = dY W + drop'(dS A),  dA = dS^T drop(x),  dB = dY^T projected.
void lora_linear_backward(const LoraLinearBackwardArgs& args, const ExecutionContext& context);

}  // namespace pyft
