// Declarations of the kernels of one instruction set, in the order of KernelTable (kernels.h describes them).
#pragma once

#include "cpu/kernels.h"

namespace pyft::cpu::PYFT_ISA {

void gemm(std::int64_t m, std::int64_t n, std::int64_t k, const MatrixView& a, const MatrixView& b, float* c,
          std::int64_t ldc, bool accumulate);
void nf4_quantize(const void* weight, DType dtype, std::int64_t num_weights, std::int64_t first_block,
                  std::int64_t last_block, std::uint8_t* codes, float* absmax);
void nf4_dequantize(const Nf4View& weight, std::int64_t first, std::int64_t last, DType out_dtype, void* out);
void nf4_dequantize_floats(const Nf4View& weight, std::int64_t first, std::int64_t last,
                           bool round_to_bfloat16, float* out);

// For gemm_packing.h only, not in the table. Both want rows that are whole blocks of 64.
//
// Rows [row0, row0 + num_rows), of each the num_columns from column0 on, both ends at blocks: `width` values
// of a row, those of the next row behind them, and the rows' next `width` values behind all of these. `width`
// divides 64.
void nf4_dequantize_runs(const Nf4View& weight, std::int64_t row0, std::int64_t num_rows,
                         std::int64_t column0, std::int64_t num_columns, bool round_to_bfloat16,
                         std::int64_t width, float* out);
// num_rows <= kLanes rows from row0 on as columns: element (row0 + r, k0 + k) to out[k * width + r], zeros in
// the other lanes; k0 is a multiple of 64, num_k of 64 and 8 * kLanes. A lane holds eight codes of its row as
// one word, so that shifting every lane alike and looking it up gives a column: only the words are
// transposed.
void nf4_dequantize_transposed(const Nf4View& weight, std::int64_t row0, std::int64_t num_rows,
                               std::int64_t k0, std::int64_t num_k, bool round_to_bfloat16,
                               std::int64_t width, float* out);
// Scales of blocks first_block, first_block + stride, ...
void nf4_block_scales(const Nf4View& weight, std::int64_t first_block, std::int64_t stride,
                      std::int64_t num_blocks, float* out);

void dropout_factors(std::uint64_t seed, std::int64_t first_entry, std::int64_t n, std::uint32_t threshold,
                     float keep_scale, float* factors);
void row_max_and_sum(const void* row, DType dtype, std::int64_t n, float* max, double* sum);
double row_sum(const void* row, DType dtype, std::int64_t n);
void row_softmax(const void* row, DType dtype, std::int64_t n, const SoftmaxTerms& terms, void* out);
void row_logits(float* row, const void* bias, DType bias_dtype, std::int64_t n, float scale, float softcap);

void rms_norm_rows(const void* x, const void* weight, DType dtype, std::int64_t num_rows, std::int64_t width,
                   float eps, float weight_offset, void* y, float* inverse_rms);
void rms_norm_rows_backward(const void* grad_y, const void* x, const void* weight, const float* inverse_rms,
                            DType dtype, std::int64_t num_rows, std::int64_t width, float weight_offset,
                            void* grad_x, float* grad_weight);
void swiglu(const void* gate, const void* up, DType dtype, std::int64_t n, void* y);
void swiglu_backward(const void* grad_y, const void* gate, const void* up, DType dtype, std::int64_t n,
                     void* grad_gate, void* grad_up);
void rotate_heads(const TokenHeads& heads, const void* cos, const void* sin, DType dtype, bool transposed);

}  // namespace pyft::cpu::PYFT_ISA
