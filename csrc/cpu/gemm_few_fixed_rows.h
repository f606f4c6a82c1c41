// x W^T of few tokens in gemm_fixed_point.h's integers: each row of W is decoded in registers, 64 weights at
// a time, and multiplied there. Included by gemm_fixed_point.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/fixed_point_rows.h"
#include "cpu/kernel_table.h"
#include "cpu/nf4_fixed_point.h"
#include "cpu/scratch.h"
#include "cpu/vector.h"

namespace pyft::cpu::PYFT_ISA {

constexpr std::int64_t kFewFixedRows = 4;

// C (+)= x W^T of few rows: each row of W is decoded in registers and multiplied there.
template <int kRows>
void fixed_dots(std::int64_t n, std::int64_t k, const RunReader& reader, const std::uint16_t* largest,
                const MatrixView& b, float* c, std::int64_t ldc, bool accumulate) {
  const Nf4View& weight = *b.nf4;
  const std::int64_t num_runs = k / kRun;
  // [run][kRows][64] integers, [run][kRows] scales of A, then of A and a row of W
  float* floats = scratch_floats(Scratch::kGemmA, num_runs * kRows * (kRun / 2 + 1));
  auto* integers = reinterpret_cast<std::int16_t*>(floats);
  float* a_scales = floats + num_runs * kRows * kRun / 2;
  float* scales = scratch_floats(Scratch::kGemmB, num_runs);
  for (std::int64_t run = 0; run < num_runs; ++run) {
    for (std::int64_t row = 0; row < kRows; ++row) {
      const RunScale scale(largest[row * num_runs + run]);
      __m256 even[4], odd[4];
      reader.read_floats(row, run * kRun, even, odd);
      store_nibbles(even, odd, scale, integers + (run * kRows + row) * kRun);
      a_scales[run * kRows + row] = scale.scale;
    }
  }
  const FixedPointDecoder decoder;
  for (std::int64_t j = 0; j < n; ++j) {
    const std::int64_t first = ((b.column_offset + j) * weight.num_columns + b.row_offset) / kNf4BlockSize;
    fixed_block_scales(weight, first, 1, num_runs, scales);
    const std::uint8_t* codes = weight.codes + first * (kNf4BlockSize / 2);
    const auto* a = reinterpret_cast<const __m256i*>(integers);
    __m256 sums[kRows] = {};
    for (std::int64_t run = 0; run < num_runs; ++run, codes += kNf4BlockSize / 2) {
      __m256i values[4];
      decoder.decode_nibbles(codes, values);
#pragma GCC unroll 4
      for (int row = 0; row < kRows; ++row, a += 4) {
        const __m256i first_half = _mm256_add_epi32(_mm256_madd_epi16(values[0], _mm256_load_si256(a)),
                                                    _mm256_madd_epi16(values[1], _mm256_load_si256(a + 1)));
        const __m256i second_half = _mm256_add_epi32(_mm256_madd_epi16(values[2], _mm256_load_si256(a + 2)),
                                                     _mm256_madd_epi16(values[3], _mm256_load_si256(a + 3)));
        sums[row] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_add_epi32(first_half, second_half)),
                                    _mm256_set1_ps(scales[run] * a_scales[run * kRows + row]), sums[row]);
      }
    }
    for (int row = 0; row < kRows; ++row) {
      float* to = c + row * ldc + j;
      const float sum = sum_of_lanes(reinterpret_cast<FloatVector>(sums[row]));
      *to = accumulate ? *to + sum : sum;
    }
  }
}

template <int kRows>
void multiply_few_fixed_rows(std::int64_t m, std::int64_t n, std::int64_t k, const RunReader& reader,
                             const std::uint16_t* largest, const MatrixView& b, float* c, std::int64_t ldc,
                             bool accumulate) {
  if constexpr (kRows > 1) {
    if (m < kRows) {
      return multiply_few_fixed_rows<kRows - 1>(m, n, k, reader, largest, b, c, ldc, accumulate);
    }
  }
  fixed_dots<kRows>(n, k, reader, largest, b, c, ldc, accumulate);
}

}  // namespace pyft::cpu::PYFT_ISA
