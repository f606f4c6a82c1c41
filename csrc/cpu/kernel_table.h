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

}  // namespace pyft::cpu::PYFT_ISA
