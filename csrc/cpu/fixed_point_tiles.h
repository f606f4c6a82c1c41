// Tiles of gemm_fixed_point.h's products: a strip of A (fixed_point_rows.h) times a panel of B
// (nf4_fixed_point.h), run after run, kFixedRows x 16 sums in registers.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "cpu/fixed_point_rows.h"
#include "cpu/gemm_packing.h"
#include "cpu/nf4_fixed_point.h"

namespace pyft::cpu::PYFT_ISA {

// sums += the pair at `pair` times the pairs of 16 columns. As one piece of assembly, because a compiler that
// may order the rows of a tile multiplies for all of them first and runs out of registers.
static inline void add_pair_products(const std::int16_t* pair, __m256i b0, __m256i b1, __m256i& sum0,
                                     __m256i& sum1) {
  __m256i both, products;
  asm("vpbroadcastd %[pair], %[both]\n\t"
      "vpmaddwd %[b0], %[both], %[products]\n\t"
      "vpmaddwd %[b1], %[both], %[both]\n\t"
      "vpaddd %[products], %[sum0], %[sum0]\n\t"
      "vpaddd %[both], %[sum1], %[sum1]"
      : [sum0] "+x"(sum0), [sum1] "+x"(sum1), [both] "=&x"(both), [products] "=&x"(products)
      : [pair] "m"(*reinterpret_cast<const std::int16_t (*)[2]>(pair)), [b0] "x"(b0), [b1] "x"(b1));
}

// sums [kRows, 16] += scales of a run * its integer products.
template <int kRows>
__attribute__((noinline)) void add_run(const std::int16_t* a, const float* a_scales, const __m256i* panel,
                                       const float* column_scales, __m256 (&sums)[kRows][2]) {
  __m256i run[kRows][2];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) run[r][0] = run[r][1] = _mm256_setzero_si256();
  for (const __m256i* end = panel + kPanelVectors; panel < end; panel += 2, a += 2) {
    const __m256i b0 = _mm256_load_si256(panel), b1 = _mm256_load_si256(panel + 1);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) add_pair_products(a + r * kRun, b0, b1, run[r][0], run[r][1]);
  }
  const __m256 scales0 = _mm256_loadu_ps(column_scales), scales1 = _mm256_loadu_ps(column_scales + 8);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const __m256 scale = _mm256_set1_ps(a_scales[r]);
    sums[r][0] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(run[r][0]), _mm256_mul_ps(scale, scales0), sums[r][0]);
    sums[r][1] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(run[r][1]), _mm256_mul_ps(scale, scales1), sums[r][1]);
  }
}

// C tile (+)= a strip * panels of num_runs runs; only the first rows x columns are written. A tile of fewer
// rows leaves out the strip's last ones.
template <int kRows>
void fixed_tile(std::int64_t num_runs, const std::int16_t* a, const float* a_scales, const __m256i* panels,
                const float* column_scales, float* c, std::int64_t ldc, std::int64_t rows,
                std::int64_t columns, bool accumulate) {
  if constexpr (kRows > 2) {
    if (rows <= kRows - 2) {
      return fixed_tile<kRows - 2>(num_runs, a, a_scales, panels, column_scales, c, ldc, rows, columns,
                                   accumulate);
    }
  }
  __m256 sums[kRows][2];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_ps();
  for (std::int64_t run = 0; run < num_runs; ++run) {
    add_run<kRows>(a + run * kFixedRows * kRun, a_scales + run * kFixedRows, panels + run * kPanelVectors,
                   column_scales + run * kPanelColumns, sums);
  }
  for (std::int64_t r = 0; r < smaller(rows, kRows); ++r, c += ldc) {
    float* from = reinterpret_cast<float*>(sums[r]);
    if (columns == kPanelColumns) {
      for (int v = 0; v < 2; ++v) {
        _mm256_storeu_ps(c + 8 * v,
                         accumulate ? _mm256_add_ps(_mm256_loadu_ps(c + 8 * v), sums[r][v]) : sums[r][v]);
      }
    } else {
      for (std::int64_t j = 0; j < columns; ++j) c[j] = accumulate ? c[j] + from[j] : from[j];
    }
  }
}

// C += for every strip of A: num_runs runs from `run` on of the packed ones, times `panels`.
static inline void multiply_strips(const FixedStrips& strips, std::int64_t m, std::int64_t packed_runs,
                                   std::int64_t run, std::int64_t num_runs, const __m256i* panels,
                                   const float* column_scales, float* c, std::int64_t ldc,
                                   std::int64_t columns, bool accumulate) {
  for (std::int64_t row = 0; row < m; row += kFixedRows, c += kFixedRows * ldc) {
    const std::int64_t at = row / kFixedRows * packed_runs + run;
    fixed_tile<kFixedRows>(num_runs, strips.row(at, 0), strips.scales + at * kFixedRows, panels,
                           column_scales, c, ldc, smaller(kFixedRows, m - row), columns, accumulate);
  }
}

}  // namespace pyft::cpu::PYFT_ISA
