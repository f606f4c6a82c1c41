// Weights in NF4: quantise, dequantise, multiply. Shapes by letter as in ops.h.
#pragma once

#include "pyft/ops/context.h"
#include "pyft/tensor_ref.h"

namespace pyft {

// A weight [N, K] in NF4; the layout is drawn in nf4_format.h. Either absmax or the three nested parts are
// defined.
struct Nf4Tensors {
  TensorRef codes;           // uint8 [ceil(N * K / 2)]
  TensorRef absmax;          // float32 [B], or None when nested
  TensorRef absmax_codes;    // uint8 [B], or None
  TensorRef nested_absmax;   // float32 [C], or None
  TensorRef offset;          // float32, one element, or None
  std::int64_t num_rows;     // N
  std::int64_t num_columns;  // K
};

struct Nf4QuantizeArgs {
  TensorRef weight;  // float32 or bfloat16, any shape, contiguous
  TensorRef codes;   // out: uint8 [ceil(numel / 2)]
  TensorRef absmax;  // out: float32 [B]
};
void nf4_quantize(const Nf4QuantizeArgs& args, const ExecutionContext& context);

struct Nf4QuantizeAbsmaxArgs {
  TensorRef absmax;         // float32 [B]
  TensorRef given_offset;   // float32, one element, or None for the mean of absmax, summed in float64
  TensorRef absmax_codes;   // out: uint8 [B]
  TensorRef nested_absmax;  // out: float32 [C]
  TensorRef offset;         // out: float32, one element, what was subtracted
};
// The second quantisation: absmax - offset to 8 bits in blocks of 256.
void nf4_quantize_absmax(const Nf4QuantizeAbsmaxArgs& args, const ExecutionContext& context);

struct Nf4DequantizeArgs {
  Nf4Tensors weight;
  TensorRef out;  // out: float32 or bfloat16 [rows, columns], contiguous
  std::int64_t first_row, first_column;
};
// A rectangle of the weight, the size of `out`: whole rows from a multiple of 64 elements on, or columns in
// multiples of 64 of a weight whose K is one.
void nf4_dequantize(const Nf4DequantizeArgs& args, const ExecutionContext& context);

// CUDA only. Something low-rank to add: a LoRA layer's S B^T, or dS A in the backward.
struct Nf4Addend {
  TensorRef projected;  // float32 [T, R], R a multiple of 4 up to 64, or None for nothing
  TensorRef adapter;    // float32, B [N, R]; in the backward A [R, K]
};

// CUDA only: of choose_nf4_small (nf4_small.h), for the same shape.
struct Nf4Partition {
  int num_blocks;
  TensorRef workspace;  // float32, workspace_floats of them or more; None where that is 0
};

struct Nf4LinearArgs {
  TensorRef x;        // float32 or bfloat16 [T, K], contiguous
  Nf4Tensors weight;  // [N, K]; dequantised values are rounded to x's dtype or finer
  TensorRef bias;     // x's dtype [N], or None
  TensorRef y;        // out: x's dtype [T, N], contiguous
  Nf4Addend addend;
  Nf4Partition partition;
};
// y = x W^T + bias + projected adapter^T, accumulated in float32. On CUDA for bfloat16, T <= 64 and K % 64 ==
// 0 only.
void nf4_linear(const Nf4LinearArgs& args, const ExecutionContext& context);

struct Nf4LinearBackwardArgs {
  TensorRef grad_y;   // float32 or bfloat16 [T, N], contiguous
  Nf4Tensors weight;  // [N, K]
  TensorRef grad_x;   // out: grad_y's dtype [T, K], contiguous
  Nf4Addend addend;
  Nf4Partition partition;
};
// dX = dY W + projected adapter, accumulated in float32. On CUDA for bfloat16, T <= 64, K % 64 == 0 and
// N % 8 == 0 only.
void nf4_linear_backward(const Nf4LinearBackwardArgs& args, const ExecutionContext& context);

}  // namespace pyft
