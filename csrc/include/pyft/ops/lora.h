// A frozen linear layer with a low-rank addition. Shapes by letter as in ops.h.
#pragma once

#include "pyft/ops/nf4.h"

namespace pyft {

// The frozen weight [N, K] of a layer with an adapter: dense, or NF4 (then `dense` is None).
struct LoraBase {
  TensorRef dense;  // float32 or bfloat16 [N, K], contiguous
  Nf4Tensors nf4;   // dequantised values are rounded to x's dtype or finer
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
  TensorRef projected;  // workspace: float32 [T, R], contiguous: S = scaling * drop(x) A^T
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
  TensorRef projected;       // workspace: float32 [T, R], contiguous: S, computed again
  TensorRef grad_projected;  // workspace: float32 [T, R], contiguous: dS
  TensorRef grad_x;          // out: x's dtype [T, K], contiguous, or None when not wanted
  TensorRef grad_A;          // out: float32 [R, K], contiguous, or None
  TensorRef grad_B;          // out: float32 [N, R], contiguous, or None
  double scaling;
  Dropout dropout;
};
// With dS = scaling * dY B:  dX = dY W + drop'(dS A),  dA = dS^T drop(x),  dB = dY^T S.
void lora_linear_backward(const LoraLinearBackwardArgs& args, const ExecutionContext& context);

// ---- CUDA: the kernels that pyft/ops/cuda/lora.py puts around a product with the base ---------------------

// How the kernels cut their sums, over a matrix [T, W] beside rank R. Depends on the shape alone, and so do
// the bits. Parts of a sum that are more than one are kept in a workspace, then added in order.
struct LoraPlan {
  std::int64_t project_parts;  // of the sum over W in lora_project
  std::int64_t row_parts;      // of that in lora_grad, together with the next
  std::int64_t column_parts;   // of the sums over T in lora_grad and lora_grad_A
};
constexpr std::int64_t kLoraTileTokens = 64, kLoraTileColumns = 128;
// Of lora_grad's and lora_grad_A's blocks; what fits beside ranks of at most 32, and beside 64.
constexpr std::int64_t lora_panel_columns(std::int64_t rank) { return rank <= 32 ? 256 : 128; }
LoraPlan plan_lora(std::int64_t num_tokens, std::int64_t num_columns, std::int64_t rank);

struct LoraProjectArgs {
  TensorRef x;          // float32 or bfloat16 [T, K], contiguous
  TensorRef lora_A;     // float32 [R, K], contiguous
  TensorRef projected;  // out: float32 [T, R], contiguous
  TensorRef workspace;  // float32 [P, T, R], the sum is then taken in P parts at the same time; or None
  double scaling;
  Dropout dropout;
};
// S = scaling * drop(x) A^T.
void lora_project(const LoraProjectArgs& args, const ExecutionContext& context);

struct LoraExpandArgs {
  TensorRef projected;  // float32 [T, R], contiguous
  TensorRef lora_B;     // float32 [N, R], contiguous
  TensorRef bias;       // y's dtype [N], or None
  TensorRef y;          // out, or in and out: float32 or bfloat16 [T, N], contiguous
  bool accumulate;      // add to y
};
// y = [y +] S B^T + bias.
void lora_expand(const LoraExpandArgs& args, const ExecutionContext& context);

struct LoraExpandBackwardArgs {
  TensorRef grad_projected;  // float32 [T, R], contiguous
  TensorRef lora_A;          // float32 [R, K], contiguous
  TensorRef grad_x;          // out, or in and out: float32 or bfloat16 [T, K], contiguous
  bool accumulate;           // add to grad_x
  Dropout dropout;
};
// dX = [dX +] drop'(dS A).
void lora_expand_backward(const LoraExpandBackwardArgs& args, const ExecutionContext& context);

struct LoraGradArgs {
  TensorRef grad_y;          // float32 or bfloat16 [T, N], contiguous
  TensorRef lora_B;          // float32 [N, R], contiguous
  TensorRef projected;       // float32 [T, R], contiguous; None where grad_B is
  TensorRef grad_projected;  // out: float32 [T, R], contiguous, or None
  TensorRef grad_B;          // out: float32 [N, R], contiguous, or None
  TensorRef row_workspace;   // float32 [P, T, R], or None for P = 1; beside grad_B P is row_parts of the plan
  TensorRef column_workspace;  // float32 [P, N, R], the sum over T is then taken in P parts; or None
  double scaling;
};
// dS = scaling * dY B and dB = dY^T S, in one pass over dY.
void lora_grad(const LoraGradArgs& args, const ExecutionContext& context);

struct LoraGradAArgs {
  TensorRef x;               // float32 or bfloat16 [T, K], contiguous
  TensorRef grad_projected;  // float32 [T, R], contiguous
  TensorRef grad_A;          // out: float32 [R, K], contiguous
  TensorRef workspace;       // float32 [P, R, K], the sum over T is then taken in P parts; or None
  Dropout dropout;
};
// dA = dS^T drop(x).
void lora_grad_A(const LoraGradAArgs& args, const ExecutionContext& context);

// ---- CUDA: these kernels one after the other, all that one direction has beside the base product ----------

struct LoraAdditionArgs {
  LoraLinearArgs layer;  // y may be None: S alone. The weight is checked, and not read
  TensorRef workspace;   // lora_project's
};
// lora_linear's checks; S; y = S B^T + bias.
void lora_addition(const LoraAdditionArgs& args, const ExecutionContext& context);

struct LoraAdditionBackwardArgs {
  TensorRef grad_y;             // float32 or bfloat16 [T, N], contiguous
  TensorRef x;                  // grad_y's dtype [T, K], contiguous
  TensorRef lora_A;             // float32 [R, K], contiguous
  TensorRef lora_B;             // float32 [N, R], contiguous
  TensorRef projected;          // workspace: float32 [T, R], contiguous: S; None where grad_B is
  TensorRef grad_projected;     // out: float32 [T, R], contiguous: dS; None where nothing needs it
  TensorRef grad_x;             // out: x's dtype [T, K], contiguous: drop'(dS A), or None
  TensorRef grad_A;             // out: float32 [R, K], contiguous, or None
  TensorRef grad_B;             // out: float32 [N, R], contiguous, or None
  TensorRef project_workspace;  // lora_project's
  TensorRef row_workspace;      // lora_grad's
  TensorRef column_workspace;   // lora_grad's
  TensorRef grad_A_workspace;   // lora_grad_A's
  double scaling;
  Dropout dropout;
};
// S, dS, dB, dA, and dX without the product with the base, of which those that are given.
void lora_addition_backward(const LoraAdditionBackwardArgs& args, const ExecutionContext& context);

}  // namespace pyft
