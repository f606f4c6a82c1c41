// The kernels that exist once per instruction set, as a table of function pointers; isa.h picks the table.
//
// RULE for the sources behind it (`*_kernels.cpp`): raw pointers in, raw pointers out, no allocation, no
// threads, no std containers or algorithms, every function in the namespace PYFT_ISA or `static`. Anything
// with external linkage outside that namespace could be kept by the linker in its AVX-512 form for every
// processor.
#pragma once

#include <cstdint>

#include "pyft/dtype.h"

namespace pyft::cpu {

// A weight [num_rows, num_columns] in NF4, as pointers (nf4_format.h draws the layout).
struct Nf4View {
  const std::uint8_t* codes;
  const float* absmax;               // null when nested
  const std::uint8_t* absmax_codes;  // null when not nested
  const float* nested_absmax;
  float offset;
  std::int64_t num_rows;
  std::int64_t num_columns;
};

// A matrix as gemm reads it: dense (element (i, j) at data[i * row_stride + j * column_stride]) or NF4.
// Values are converted to float32 while they are packed. Make one with the functions of gemm.h.
struct MatrixView {
  enum class Kind { kFloat32, kBFloat16, kNf4 };
  Kind kind;
  const void* data;            // dense
  std::int64_t row_stride;     // dense, in elements
  std::int64_t column_stride;  // dense, in elements
  const Nf4View* nf4;          // NF4
  bool transposed;             // NF4: element (i, j) is the weight's (j, i)
  bool round_to_bfloat16;      // NF4: for products in bfloat16, dequantised values rounded to it or finer
  std::int64_t row_offset;     // NF4: of this view's element (0, 0) in the weight, in the view's orientation
  std::int64_t column_offset;
};

// What row_softmax makes of a logit l: (exp(l - max) * factor - uniform) * (1 - (l * inverse_softcap)^2).
struct SoftmaxTerms {
  float max;
  float factor;
  float uniform;
  float inverse_softcap;  // 0 leaves the last factor out
};

// The heads of one token: `width` entries each, of which the first `rotated`, an even number, are rotated.
struct TokenHeads {
  const void* in;
  std::int64_t in_stride;  // from head to head, in elements
  void* out;
  std::int64_t out_stride;
  std::int64_t num_heads;
  std::int64_t width;
  std::int64_t rotated;
};

struct KernelTable {
  const char* name;
  int vector_bytes;

  // C [M, N] = A [M, K] B [K, N], or C += when `accumulate`. Float32 accumulation in an order that depends on
  // (M, N, K), and for bfloat16 times NF4 on whether A is finite, only. C is row-major with row stride ldc.
  // K = 0 gives zeros (or leaves C).
  void (*gemm)(std::int64_t m, std::int64_t n, std::int64_t k, const MatrixView& a, const MatrixView& b,
               float* c, std::int64_t ldc, bool accumulate);

  // Blocks [first_block, last_block) of 64 of a flat weight with num_weights elements; `weight` is float32 or
  // bfloat16.
  void (*nf4_quantize)(const void* weight, DType dtype, std::int64_t num_weights, std::int64_t first_block,
                       std::int64_t last_block, std::uint8_t* codes, float* absmax);
  // Flat elements [first, last) of a weight; first begins a block. `out` points at element `first`.
  void (*nf4_dequantize)(const Nf4View& weight, std::int64_t first, std::int64_t last, DType out_dtype,
                         void* out);
  // The same, as float32, at any `first`; values rounded to bfloat16 when asked.
  void (*nf4_dequantize_floats)(const Nf4View& weight, std::int64_t first, std::int64_t last,
                                bool round_to_bfloat16, float* out);

  // LoRA. factors[i] = keep_scale, or 0 where dropout drops flat entry first_entry + i.
  void (*dropout_factors)(std::uint64_t seed, std::int64_t first_entry, std::int64_t n,
                          std::uint32_t threshold, float keep_scale, float* factors);

  // Cross-entropy. The largest of n logits, and the sum of exp(logit - largest); NaN in gives NaN out.
  void (*row_max_and_sum)(const void* row, DType dtype, std::int64_t n, float* max, double* sum);
  // The sum of n logits.
  double (*row_sum)(const void* row, DType dtype, std::int64_t n);
  // `out` has the row's dtype and may be `row`.
  void (*row_softmax)(const void* row, DType dtype, std::int64_t n, const SoftmaxTerms& terms, void* out);
  // row[v] = softcap tanh(scale (row[v] + bias[v]) / softcap); no bias where it is null, no cap where
  // softcap is 0.
  void (*row_logits)(float* row, const void* bias, DType bias_dtype, std::int64_t n, float scale,
                     float softcap);

  // RMSNorm, of num_rows rows side by side (ops/rms_norm.h has the formulas). inverse_rms [num_rows].
  void (*rms_norm_rows)(const void* x, const void* weight, DType dtype, std::int64_t num_rows,
                        std::int64_t width, float eps, float weight_offset, void* y, float* inverse_rms);
  // grad_weight [width] is added to, or null.
  void (*rms_norm_rows_backward)(const void* grad_y, const void* x, const void* weight,
                                 const float* inverse_rms, DType dtype, std::int64_t num_rows,
                                 std::int64_t width, float weight_offset, void* grad_x, float* grad_weight);

  // SwiGLU, of n entries. Outputs may be inputs.
  void (*swiglu)(const void* gate, const void* up, DType dtype, std::int64_t n, void* y);
  void (*swiglu_backward)(const void* grad_y, const void* gate, const void* up, DType dtype, std::int64_t n,
                          void* grad_gate, void* grad_up);

  // Rotary embedding, of one token's heads.
  void (*rotate_heads)(const TokenHeads& heads, const void* cos, const void* sin, DType dtype,
                       bool transposed);
};

}  // namespace pyft::cpu
