// Products of few tokens and an NF4 weight: it is read once, decoded in registers half a block at a time, and
// multiplied there. Included by gemm_kernels.cpp.
//
//     rows along K (x W^T)                            rows along N (dY W)
//       for each row j of W, for each block of 64:      for runs of kRun rows, two rows at once, each block:
//         c[i, j] += sum over the block of              sums[i, block] += a[i, row] * decoded
//                    decoded * a[i, block]              then c += sums
//
// Sums of 64 products and less are taken first, then their sums: one long chain of additions would lose what
// packed tiles keep. A's rows stay in the nearest cache, as do C's sums of one tile.
#pragma once

#include <cstdint>

#include "cpu/gemm_few_rows.h"
#include "cpu/gemm_packing.h"
#include "cpu/nf4_block.h"
#include "cpu/scratch.h"
#include "cpu/vector.h"

namespace pyft::cpu::PYFT_ISA {

constexpr int kFewNf4Rows = 4;  // and one less for updates, which load and store C's sums

// Whether gemm_few_nf4_rows is for this product: few rows of A, B made of whole blocks.
static inline bool has_few_nf4_rows(std::int64_t m, std::int64_t n, std::int64_t k, const MatrixView& b) {
  if (b.kind != MatrixView::Kind::kNf4 || b.nf4->num_columns % kNf4BlockSize) return false;
  if (m > (b.transposed ? kFewNf4Rows : kFewNf4Rows - 1)) return false;
  const std::int64_t along = b.transposed ? k : n, first = b.transposed ? b.row_offset : b.column_offset;
  return along % kNf4BlockSize == 0 && first % kNf4BlockSize == 0;
}

// Room for the scales of blocks and for their tables.
template <bool kRounds>
float* scales_and_tables(std::int64_t num_blocks, BlockTable<kRounds>** tables) {
  constexpr std::int64_t kTableFloats = sizeof(BlockTable<kRounds>) / sizeof(float);
  float* floats = scratch_floats(Scratch::kGemmRows, num_blocks * (kTableFloats + 1));
  *tables = reinterpret_cast<BlockTable<kRounds>*>(floats);  // aligned as scratch memory is
  return floats + num_blocks * kTableFloats;
}

// C = A B, B's columns being rows of W.
template <bool kRounds, int kRows>
void dot_nf4_rows(std::int64_t n, std::int64_t k, const float* a, const MatrixView& b, float* c,
                  std::int64_t ldc, bool accumulate) {
  const Nf4View& weight = *b.nf4;
  const std::int64_t num_blocks = k / kNf4BlockSize;
  BlockTable<kRounds>* tables = nullptr;
  float* scales = scales_and_tables(num_blocks, &tables);
  const BlockDecoder<kRounds> decoder;
  for (std::int64_t j = 0; j < n; ++j) {
    const std::int64_t first = (b.column_offset + j) * weight.num_columns + b.row_offset;
    nf4_block_scales(weight, first / kNf4BlockSize, 1, num_blocks, scales);
    decoder.fill(scales, num_blocks, tables);
    const std::uint8_t* codes = weight.codes + first / 2;
    FloatVector sums[kRows] = {};
    for (std::int64_t block = 0; block < num_blocks; ++block, codes += kNf4BlockSize / 2) {
      for (int half = 0; half < 2; ++half) {
        FloatVector values[kHalfVectors];
        decoder.decode_half(tables[block], codes + half * kHalfBlock / 2, values);
        const float* from = a + block * kNf4BlockSize + half * kHalfBlock;
#pragma GCC unroll 4
        for (int i = 0; i < kRows; ++i, from += k) {
          // two short chains rather than a long one
          FloatVector even = values[0] * load(from), odd = values[1] * load(from + kLanes);
#pragma GCC unroll 4
          for (int v = 2; v < kHalfVectors; v += 2) {
            even += values[v] * load(from + v * kLanes);
            odd += values[v + 1] * load(from + (v + 1) * kLanes);
          }
          sums[i] += even + odd;
        }
      }
    }
    for (int i = 0; i < kRows; ++i) {
      float* to = c + i * ldc + j;
      const float sum = sum_of_lanes(sums[i]);
      *to = accumulate ? *to + sum : sum;
    }
  }
}

// sums [kRows, 64] += a [kRows, kStep] of row stride k times a block of kStep rows of W. Rows of sums are n
// apart.
template <bool kRounds, int kRows, int kStep>
inline void add_nf4_blocks(const BlockDecoder<kRounds>& decoder, const BlockTable<kRounds>* tables,
                           const std::uint8_t* codes, std::int64_t row_bytes, const float* a, std::int64_t k,
                           float* sums, std::int64_t n) {
  for (int row = 0; row < kStep; ++row) __builtin_prefetch(codes + (row + kRowsAhead) * row_bytes);
  for (int half = 0; half < 2; ++half, sums += kHalfBlock, codes += kHalfBlock / 2) {
    FloatVector values[kStep][kHalfVectors];
#pragma GCC unroll 2
    for (int row = 0; row < kStep; ++row) {
      decoder.decode_half(tables[row], codes + row * row_bytes, values[row]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < kHalfVectors; ++v) {
        float* to = sums + i * n + v * kLanes;
        FloatVector sum = load(to);
#pragma GCC unroll 2
        for (int row = 0; row < kStep; ++row) sum += a[i * k + row] * values[row][v];
        store(to, sum);
      }
    }
  }
}

// C = A B, B's rows being rows of W.
template <bool kRounds, int kRows>
void update_by_nf4_rows(std::int64_t n, std::int64_t k, const float* a, const MatrixView& b, float* c,
                        std::int64_t ldc, bool accumulate) {
  constexpr std::int64_t kRun = 64, kStep = 2;
  const Nf4View& weight = *b.nf4;
  const std::int64_t row_bytes = weight.num_columns / 2;
  BlockTable<kRounds>* tables = nullptr;
  float* scales = scales_and_tables(kRun, &tables);
  float* sums = scratch_floats(Scratch::kGemmB, kRows * n);
  const BlockDecoder<kRounds> decoder;
  for (std::int64_t k0 = 0; k0 < k; k0 += kRun) {
    const std::int64_t num_k = smaller(kRun, k - k0);
    for (std::int64_t i = 0; i < kRows * n; ++i) sums[i] = 0.0f;
    for (std::int64_t j = 0; j < n; j += kNf4BlockSize) {
      const std::int64_t first = (b.row_offset + k0) * weight.num_columns + b.column_offset + j;
      nf4_block_scales(weight, first / kNf4BlockSize, weight.num_columns / kNf4BlockSize, num_k, scales);
      decoder.fill(scales, num_k, tables);
      const std::uint8_t* codes = weight.codes + first / 2;
      std::int64_t kk = 0;
      for (; kk + kStep <= num_k; kk += kStep, codes += kStep * row_bytes) {
        add_nf4_blocks<kRounds, kRows, kStep>(decoder, tables + kk, codes, row_bytes, a + k0 + kk, k,
                                              sums + j, n);
      }
      if (kk < num_k) {
        add_nf4_blocks<kRounds, kRows, 1>(decoder, tables + kk, codes, row_bytes, a + k0 + kk, k, sums + j,
                                          n);
      }
    }
    for (std::int64_t i = 0; i < kRows; ++i) {
      for (std::int64_t j = 0; j < n; ++j) {
        float* to = c + i * ldc + j;
        *to = accumulate || k0 > 0 ? *to + sums[i * n + j] : sums[i * n + j];
      }
    }
  }
}

template <bool kRounds, int kRows>
void multiply_nf4_rows(std::int64_t m, std::int64_t n, std::int64_t k, const float* a, const MatrixView& b,
                       float* c, std::int64_t ldc, bool accumulate) {
  if constexpr (kRows > 1) {
    if (m < kRows) return multiply_nf4_rows<kRounds, kRows - 1>(m, n, k, a, b, c, ldc, accumulate);
  }
  if (b.transposed) return dot_nf4_rows<kRounds, kRows>(n, k, a, b, c, ldc, accumulate);
  update_by_nf4_rows<kRounds, kRows>(n, k, a, b, c, ldc, accumulate);
}

static inline void gemm_few_nf4_rows(std::int64_t m, std::int64_t n, std::int64_t k, const MatrixView& a,
                                     const MatrixView& b, float* c, std::int64_t ldc, bool accumulate) {
  const float* a_rows = copy_rows(m, k, a);
  const auto multiply =
      b.round_to_bfloat16 ? multiply_nf4_rows<true, kFewNf4Rows> : multiply_nf4_rows<false, kFewNf4Rows>;
  multiply(m, n, k, a_rows, b, c, ldc, accumulate);
}

}  // namespace pyft::cpu::PYFT_ISA
