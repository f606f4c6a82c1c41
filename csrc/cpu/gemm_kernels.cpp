// Matrix product of one instruction set, summed in float32: C [M, N] = A [M, K] B [K, N]. Operands that are
// both bfloat16 are multiplied in pairs of k where there is an instruction for it (bfloat16_pairs.h).
//
// Both operands are packed into panels, so that one register tile serves every orientation and element type:
//
//   A panel: kTileRows rows        B panel: kTileColumns columns        C tile in registers
//     k=0   a00 a10 ... a(R-1)0      k=0   b00 b01 ... b0(W-1)             kTileRows x kTileColumns
//     k=1   a01 a11 ...              k=1   b10 b11 ...                     += outer product, k after k
//     ...                            ...
//
//   for n0 in N by kBlockN:
//     for k0 in K by kBlockK:
//       for m0 in M by kBlockM:             a block of A, packed:         kBlockM x kBlockK floats, 132 KB
//         for j0 in the block by kPackColumns:
//           panels of B, packed at the first m0: kept for the others, 512 KB at most, or if there are none,
//           used from the cache and overwritten, 128 KB
//           tiles: C (+)= A panel * B panel
//
// Panels are padded with zeros, so edges run the same code. An element of C is summed over k in runs of kRunK
// (half of that where there are few), each in a register and then added to C, because a chain of additions
// loses the more the longer it is. The order depends on the element's tile, so on (M, N, K) alone. Where A
// has few rows, packing B would cost more than the product: gemm_few_rows.h, gemm_few_nf4_rows.h. On AVX2,
// which has no instruction for pairs of bfloat16, an NF4 weight is multiplied in integers:
// gemm_fixed_point.h.
#include <cstdint>

#include "cpu/bfloat16_pairs.h"
#include "cpu/gemm_few_nf4_rows.h"
#include "cpu/gemm_few_rows.h"
#ifdef PYFT_NF4_PLANES
#include "cpu/gemm_fixed_point.h"
#endif
#include "cpu/gemm_packing.h"
#include "cpu/kernel_table.h"
#include "cpu/scratch.h"
#include "cpu/vector.h"

namespace pyft::cpu::PYFT_ISA {
namespace {

// Register tile: accumulators + one B row + one broadcast fit the register file (32 zmm, 16 ymm, 16 xmm).
constexpr int kTileVectors = 2;
constexpr int kTileRows = kLanes == 16 ? 12 : kLanes == 8 ? 6 : 4;
constexpr int kTileColumns = kTileVectors * kLanes;

constexpr std::int64_t kBlockK = 256;
constexpr std::int64_t kRunK = 64;
constexpr std::int64_t kBlockM = 132;
constexpr std::int64_t kBlockN = 512;
constexpr std::int64_t kPackColumns = 128;
static_assert(kTileRows <= kLanes && kTileColumns % kLanes == 0, "a panel's row is packed by whole vectors");
static_assert(kBlockM % kTileRows == 0 && kPackColumns % kTileColumns == 0, "blocks are whole tiles");

// One step of a panel: sum + a * b, or the products of a pair.
template <bool kPairs>
inline FloatVector add_products(FloatVector sum, const float* a, FloatVector b) {
  if constexpr (kPairs) {
    std::uint32_t pair;
    std::memcpy(&pair, a, sizeof pair);
    return add_pair_products(sum, BitsVector{} + pair, reinterpret_cast<BitsVector>(b));
  } else {
    return sum + *a * b;
  }
}

// A tile of kRows rows = A panel * B panel over num_steps rows of the panels, or += when `add`. The smallest
// gives odd k sums of their own, to have enough of them to keep the multipliers busy.
template <bool kPairs, int kRows>
inline void sum_run(std::int64_t num_steps, const float* a, const float* b, float* out,
                    std::int64_t out_stride, bool add) {
  constexpr int kChains = kRows == 2 ? 2 : 1;
  FloatVector sums[kChains][kRows][kTileVectors] = {};
  const auto step = [&](FloatVector(&to)[kRows][kTileVectors]) {
    FloatVector b_row[kTileVectors];
    for (int v = 0; v < kTileVectors; ++v) b_row[v] = load(b + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kTileVectors; ++v) to[r][v] = add_products<kPairs>(to[r][v], a + r, b_row[v]);
    }
    a += kTileRows;
    b += kTileColumns;
  };
  std::int64_t done = 0;
#pragma GCC unroll 4
  for (; done + kChains <= num_steps; done += kChains) {
#pragma GCC unroll 4
    for (int chain = 0; chain < kChains; ++chain) step(sums[chain]);
  }
  for (; done < num_steps; ++done) step(sums[0]);
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kTileVectors; ++v) {
      for (int chain = 1; chain < kChains; ++chain) sums[0][r][v] += sums[chain][r][v];
      float* to = out + r * out_stride + v * kLanes;
      store(to, add ? load(to) + sums[0][r][v] : sums[0][r][v]);
    }
  }
}

// C tile = A panel * B panel over num_steps rows of the panels, added to C when `accumulate`; only the first
// rows x columns are written. A tile of fewer rows leaves out the panel's last ones.
template <bool kPairs, int kRows>
void tile(std::int64_t num_steps, const float* a, const float* b, float* c, std::int64_t ldc,
          std::int64_t rows, std::int64_t columns, bool accumulate) {
  if constexpr (kRows > 2) {
    if (rows <= kRows - 2) return tile<kPairs, kRows - 2>(num_steps, a, b, c, ldc, rows, columns, accumulate);
  }
  constexpr std::int64_t kLongRun = kPairs ? kRunK / 2 : kRunK;
  const std::int64_t run = num_steps < 2 * kLongRun ? kLongRun / 2 : kLongRun;
  const bool is_whole = rows == kRows && columns == kTileColumns;
  float padded[kRows * kTileColumns];
  float* out = is_whole ? c : padded;
  const std::int64_t out_stride = is_whole ? ldc : kTileColumns;
  for (std::int64_t i = 0; i < num_steps; i += run) {
    sum_run<kPairs, kRows>(smaller(run, num_steps - i), a + i * kTileRows, b + i * kTileColumns, out,
                           out_stride, i > 0 || (is_whole && accumulate));
  }
  if (is_whole) return;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t j = 0; j < columns; ++j) {
      const float sum = padded[r * kTileColumns + j];
      c[r * ldc + j] = accumulate ? c[r * ldc + j] + sum : sum;
    }
  }
}

template <bool kPairs>
void gemm_packed(std::int64_t m, std::int64_t n, std::int64_t k, const MatrixView& a, const MatrixView& b,
                 float* c, std::int64_t ldc, bool accumulate) {
  const MatrixView b_transposed = flipped(b);
  // Panels of NF4 that are used once stay in the nearest cache: 16 KB, of whole blocks.
  const bool used_once = m <= kBlockM && b.kind == MatrixView::Kind::kNf4;
  const std::int64_t block_k = used_once && !b.transposed ? kNf4BlockSize : kBlockK;
  const std::int64_t pack_columns = !used_once ? kPackColumns : b.transposed ? kTileColumns : kNf4BlockSize;
  float* b_packed = scratch_floats(Scratch::kGemmB, kBlockK * kBlockN + kLanes);
  float* a_packed = scratch_floats(Scratch::kGemmA, kBlockM * kBlockK + kLanes);
  for (std::int64_t n0 = 0; n0 < n; n0 += kBlockN) {
    const std::int64_t num_n = smaller(kBlockN, n - n0);
    for (std::int64_t k0 = 0; k0 < k; k0 += block_k) {
      const std::int64_t num_k = smaller(block_k, k - k0);
      const std::int64_t num_steps = kPairs ? (num_k + 1) / 2 : num_k;
      for (std::int64_t m0 = 0; m0 < m; m0 += kBlockM) {
        const std::int64_t num_m = smaller(kBlockM, m - m0);
        pack<kTileRows>(a, m0, num_m, k0, num_k, a_packed);
        if (kPairs) pair_panels<kTileRows>(num_m, num_k, a_packed);
        for (std::int64_t j0 = 0; j0 < num_n; j0 += pack_columns) {
          const std::int64_t num_j = smaller(pack_columns, num_n - j0);
          float* panels = b_packed + (m <= kBlockM ? 0 : j0 * num_k);
          if (m0 == 0) {
            pack<kTileColumns>(b_transposed, n0 + j0, num_j, k0, num_k, panels);
            if (kPairs) pair_panels<kTileColumns>(num_j, num_k, panels);
          }
          for (std::int64_t j = 0; j < num_j; j += kTileColumns) {
            for (std::int64_t i = 0; i < num_m; i += kTileRows) {
              tile<kPairs, kTileRows>(num_steps, a_packed + i * num_k, panels + j * num_k,
                                      c + (m0 + i) * ldc + n0 + j0 + j, ldc, smaller(kTileRows, num_m - i),
                                      smaller(kTileColumns, num_j - j), accumulate || k0 > 0);
            }
          }
        }
      }
    }
  }
}

bool holds_bfloat16(const MatrixView& view) {
  return view.kind == MatrixView::Kind::kNf4 ? view.round_to_bfloat16
                                             : view.kind == MatrixView::Kind::kBFloat16;
}

}  // namespace

void gemm(std::int64_t m, std::int64_t n, std::int64_t k, const MatrixView& a, const MatrixView& b, float* c,
          std::int64_t ldc, bool accumulate) {
  if (m <= 0 || n <= 0) return;
#ifdef PYFT_NF4_PLANES
  if (k > 0 && gemm_fixed_point(m, n, k, a, b, c, ldc, accumulate)) return;
#endif
  if (k <= 0 || (m <= kFewRows && b.kind != MatrixView::Kind::kNf4)) {
    gemm_few_rows(m, n, k, a, b, c, ldc, accumulate);
  } else if (has_few_nf4_rows(m, n, k, b)) {
    gemm_few_nf4_rows(m, n, k, a, b, c, ldc, accumulate);
  } else if (kMultipliesPairs && holds_bfloat16(a) && holds_bfloat16(b)) {
    gemm_packed<kMultipliesPairs>(m, n, k, a, b, c, ldc, accumulate);
  } else {
    gemm_packed<false>(m, n, k, a, b, c, ldc, accumulate);
  }
}

}  // namespace pyft::cpu::PYFT_ISA
