// Products of bfloat16 rows and an NF4 weight in integers, on AVX2: vpmaddwd multiplies sixteen pairs of
// 16-bit integers and adds them two by two, where a fused multiply-add takes eight. Included by
// gemm_kernels.cpp.
//
//     c[n, k]  codebook integers (nf4_fixed_point.h)       W = c absmax / kCodeScale
//     i[m, k]  |i| <= 2^14, of runs of 64 along the sum    A = i 2^e, e of the run's largest magnitude
//
//     x W^T:  C[m, n] = sum over blocks b of  absmax[n, b] / kCodeScale 2^e[m, b]  sum over k in b of i c
//     dY W:   absmax changes along the sum, so it is multiplied into A for each column of blocks:
//             i = dY[m, n] absmax[n, b] / largest absmax / 2^e, and the largest absmax scales the run's sum
//
//     x W^T: for runs that fit into kPackedBytes       dY W: for kPanelRuns runs
//              A's strips packed                               for 64 columns, a block of each row of W
//              for 16 columns, kPanelRuns runs                   A's strips packed, times absmax
//                a panel of B decoded                            four panels of B decoded
//                for strips: C tile (+)= strip * panel           for panels, strips: C tile (+)= ...
//
// The inner sums are exact: 64 * 2^14 * 1747 < 2^31. In x W^T values of A within 2^-6 of their run's largest
// are exact and others off by 2^-14 of it at most. In dY W, dY absmax is off by 2^-14 of the run's largest
// such product, or of 16 times it. Below 2^-113 A, and below 2^-102 A times absmax, keep fewer bits too. Sums
// of a run are added in float32. What is not finite in A has no integer: such a product is left to float32.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "cpu/fixed_point_rows.h"
#include "cpu/fixed_point_tiles.h"
#include "cpu/gemm_few_fixed_rows.h"
#include "cpu/gemm_packing.h"
#include "cpu/kernel_table.h"
#include "cpu/nf4_fixed_point.h"
#include "cpu/scratch.h"

namespace pyft::cpu::PYFT_ISA {

constexpr std::int64_t kPanelRuns = 4;            // 8 KB of a panel, used by every strip while they are near
constexpr std::int64_t kPackedBytes = 192 << 10;  // of A's integers at one time
constexpr std::int64_t kPanelFloats = kPanelVectors * 8;

// Whether integers can serve: A of bfloat16 rows, B of whole blocks.
static inline bool fits_fixed_point(std::int64_t n, std::int64_t k, const MatrixView& a,
                                    const MatrixView& b) {
  if (b.kind != MatrixView::Kind::kNf4 || !b.round_to_bfloat16 || b.nf4->num_columns % kRun) return false;
  if (a.kind != MatrixView::Kind::kBFloat16 || a.column_stride != 1) return false;
  const std::int64_t along = b.transposed ? k : n, first = b.transposed ? b.row_offset : b.column_offset;
  return along % kRun == 0 && first % kRun == 0;
}

static inline std::int64_t packed_runs(std::int64_t m, std::int64_t num_runs) {
  const std::int64_t row_bytes = kRun * 2;
  const std::int64_t fitting = kPackedBytes / (m * row_bytes) / kPanelRuns * kPanelRuns;
  return smaller(num_runs, fitting < kPanelRuns ? kPanelRuns : fitting);
}

// C (+)= x W^T.
static inline void fixed_by_rows(std::int64_t m, std::int64_t n, std::int64_t k, const RunReader& reader,
                                 const std::uint16_t* largest, const MatrixView& b, float* c,
                                 std::int64_t ldc, bool accumulate) {
  const Nf4View& weight = *b.nf4;
  const std::int64_t num_runs = k / kRun, blocks_per_row = weight.num_columns / kNf4BlockSize;
  const std::int64_t at_once = packed_runs(m, num_runs);
  const FixedStrips strips = FixedStrips::allocate(m, at_once);
  __m256i* panels = reinterpret_cast<__m256i*>(scratch_floats(Scratch::kGemmB, kPanelRuns * kPanelFloats));
  const FixedPointDecoder decoder;
  for (std::int64_t run0 = 0; run0 < num_runs; run0 += at_once) {
    const std::int64_t packed = smaller(at_once, num_runs - run0);
    for (std::int64_t row = 0; row < m; ++row) {
      for (std::int64_t run = 0; run < packed; ++run) {
        const std::int64_t at = row / kFixedRows * packed + run, r = row % kFixedRows;
        const RunScale scale(largest[row * num_runs + run0 + run]);
        __m256 even[4], odd[4];
        reader.read_floats(row, (run0 + run) * kRun, even, odd);
        store_pairs(even, odd, scale, strips.row(at, r));
        strips.scales[at * kFixedRows + r] = scale.scale;
      }
    }
    for (std::int64_t j = 0; j < n; j += kPanelColumns) {
      const std::int64_t columns = smaller(kPanelColumns, n - j);
      for (std::int64_t run = 0; run < packed; run += kPanelRuns) {
        const std::int64_t count = smaller(kPanelRuns, packed - run);
        const std::int64_t first =
            (b.column_offset + j) * blocks_per_row + b.row_offset / kNf4BlockSize + run0 + run;
        float column_scales[kPanelRuns * kPanelColumns] = {};
        for (std::int64_t i = 0; i < count; ++i) {
          const std::uint8_t* codes[kPanelColumns];
          for (std::int64_t column = 0; column < kPanelColumns; ++column) {
            const std::int64_t block = first + i + (column < columns ? column : 0) * blocks_per_row;
            codes[column] = weight.codes + block * (kNf4BlockSize / 2);
          }
          decoder.decode_rows(codes, panels + i * kPanelVectors);
          fixed_block_scales(weight, first + i, blocks_per_row, columns, column_scales + i * kPanelColumns);
        }
        multiply_strips(strips, m, packed, run, count, panels, column_scales, c + j, ldc, columns,
                        accumulate || run0 + run > 0);
      }
    }
  }
}

// What a run's absmax, of one column of blocks, does to A: factors of at most 1 in the order of
// RunReader::read_floats, and the largest / kCodeScale, which the sum is scaled by.
struct AbsmaxFactors {
  AbsmaxFactors(const Nf4View& weight, std::int64_t first_block, std::int64_t stride, std::int64_t num_rows) {
    float scales[kRun] = {};
    nf4_block_scales(weight, first_block, stride, num_rows, scales);
    float sum = 0.0f, smallest = kLargestFloat;
    for (const float scale : scales) {
      const float magnitude = scale < 0.0f ? -scale : scale;
      largest = magnitude > largest ? magnitude : largest;
      smallest = magnitude > 0.0f && magnitude < smallest ? magnitude : smallest;
      sum += magnitude * 0.0f;
    }
    is_spread = smallest * kSpread < largest;
    const float inverse = largest > kSmallestAbsmax ? 1.0f / largest : 0.0f;
    for (int i = 0; i < kRun; ++i) by_parity[i / 16 * 16 + i % 2 * 8 + i % 16 / 2] = scales[i] * inverse;
    largest = (largest + sum) * (1.0f / kCodeScale);  // NaN if one is
  }
  static constexpr float kLargestFloat = 3.4028235e38f, kSpread = 16.0f;

  float largest = 0.0f;
  bool is_spread;  // by more than kSpread
  alignas(32) float by_parity[kRun];
};

// A's rows times a column of blocks' absmax: integers of run `run`, for place `at` of `packed` runs. The
// scale is that of A's own largest value, or of the largest product where a row of W far above the others
// would leave these few bits.
static inline void pack_scaled_run(std::int64_t m, const RunReader& reader, const std::uint16_t* largest,
                                   std::int64_t num_runs, std::int64_t run, const AbsmaxFactors& absmax,
                                   std::int64_t packed, std::int64_t at, const FixedStrips& strips) {
  for (std::int64_t row = 0; row < m; ++row) {
    const std::int64_t strip_run = row / kFixedRows * packed + at, r = row % kFixedRows;
    __m256 even[4], odd[4];
    reader.read_floats(row, run * kRun, even, odd);
    for (int v = 0; v < 4; ++v) {
      even[v] = _mm256_mul_ps(even[v], _mm256_load_ps(absmax.by_parity + 16 * v));
      odd[v] = _mm256_mul_ps(odd[v], _mm256_load_ps(absmax.by_parity + 16 * v + 8));
    }
    const RunScale scale(absmax.is_spread ? largest_of(even, odd) : largest[row * num_runs + run]);
    store_pairs(even, odd, scale, strips.row(strip_run, r));
    strips.scales[strip_run * kFixedRows + r] = scale.scale;
  }
}

// C (+)= dY W.
static inline void fixed_by_columns(std::int64_t m, std::int64_t n, std::int64_t k, const RunReader& reader,
                                    const std::uint16_t* largest, const MatrixView& b, float* c,
                                    std::int64_t ldc, bool accumulate) {
  constexpr std::int64_t kPanels = kNf4BlockSize / kPanelColumns, kPanelStride = kPanelRuns * kPanelVectors;
  const Nf4View& weight = *b.nf4;
  const std::int64_t num_runs = (k + kRun - 1) / kRun, blocks_per_row = weight.num_columns / kNf4BlockSize;
  const std::int64_t row_bytes = weight.num_columns / 2;
  const FixedStrips strips = FixedStrips::allocate(m, kPanelRuns);
  __m256i* panels =
      reinterpret_cast<__m256i*>(scratch_floats(Scratch::kGemmB, kPanels * kPanelRuns * kPanelFloats));
  const FixedPointDecoder decoder;
  for (std::int64_t run0 = 0; run0 < num_runs; run0 += kPanelRuns) {
    const std::int64_t count = smaller(kPanelRuns, num_runs - run0);
    for (std::int64_t j = 0; j < n; j += kNf4BlockSize) {
      float column_scales[kPanelRuns * kPanelColumns];
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t row0 = (run0 + i) * kRun, num_rows = smaller(kRun, k - row0);
        const std::int64_t first =
            (b.row_offset + row0) * blocks_per_row + (b.column_offset + j) / kNf4BlockSize;
        const AbsmaxFactors absmax(weight, first, blocks_per_row, num_rows);
        pack_scaled_run(m, reader, largest, num_runs, run0 + i, absmax, count, i, strips);
        for (std::int64_t column = 0; column < kPanelColumns; ++column) {
          column_scales[i * kPanelColumns + column] = absmax.largest;
        }
        const std::uint8_t* codes = weight.codes + first * (kNf4BlockSize / 2);
        for (std::int64_t step = 0; step < kRun / 2; ++step) {
          __builtin_prefetch(codes + (2 * step + kRowsAhead) * row_bytes);
          __builtin_prefetch(codes + (2 * step + 1 + kRowsAhead) * row_bytes);
          const std::uint8_t* rows = 2 * step < num_rows ? codes + 2 * step * row_bytes : codes;
          decoder.decode_row_pair(rows, 2 * step + 1 < num_rows ? rows + row_bytes : nullptr,
                                  panels + i * kPanelVectors + 2 * step, kPanelStride);
        }
      }
      for (std::int64_t panel = 0; panel < kPanels; ++panel) {
        multiply_strips(strips, m, count, 0, count, panels + panel * kPanelStride, column_scales,
                        c + j + panel * kPanelColumns, ldc, kPanelColumns, accumulate || run0 > 0);
      }
    }
  }
}

// C (+)= A B in integers; false, and C untouched, where they cannot serve.
static inline bool gemm_fixed_point(std::int64_t m, std::int64_t n, std::int64_t k, const MatrixView& a,
                                    const MatrixView& b, float* c, std::int64_t ldc, bool accumulate) {
  if (!fits_fixed_point(n, k, a, b)) return false;
  const RunReader reader(a, k);
  const std::uint16_t* largest = largest_of_runs(m, (k + kRun - 1) / kRun, reader);
  if (!largest) return false;
  if (!b.transposed) {
    fixed_by_columns(m, n, k, reader, largest, b, c, ldc, accumulate);
  } else if (m <= kFewFixedRows) {
    multiply_few_fixed_rows<kFewFixedRows>(m, n, k, reader, largest, b, c, ldc, accumulate);
  } else {
    fixed_by_rows(m, n, k, reader, largest, b, c, ldc, accumulate);
  }
  return true;
}

}  // namespace pyft::cpu::PYFT_ISA
