// Float32 matrix product of one instruction set: C [M, N] = A [M, K] B [K, N].
//
// Both operands are packed into panels, so that one register tile serves every orientation and element type:
//
//   A panel: kTileRows rows        B panel: kTileColumns columns        C tile in registers
//     k=0   a00 a10 ... a(R-1)0      k=0   b00 b01 ... b0(W-1)             kTileRows x kTileColumns
//     k=1   a01 a11 ...              k=1   b10 b11 ...                     += outer product, k after k
//     ...                            ...
//
//   for n0 in N by kBlockN:                 a block of B, packed once:    kBlockK x kBlockN floats, 512 KB
//     for k0 in K by kBlockK:
//       for m0 in M by kBlockM:             a block of A, packed once:    kBlockM x kBlockK floats, 96 KB
//         tiles: C (+)= A panel * B panel
//
// Panels are padded with zeros, so edges run the same code. An element of C is summed over k in order, in
// runs of kBlockK, whatever tile it falls in. For M <= kFewRows packing would cost more than the product:
// rows of B are then used where they lie (or dequantised one by one) as dot products or as updates of C.
#include <cstdint>

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
constexpr std::int64_t kBlockM = 96;
constexpr std::int64_t kBlockN = 512;
constexpr std::int64_t kFewRows = 8;
constexpr std::int64_t kShortRun = 32;
constexpr std::int64_t kRowsAtOnce = 4;
static_assert(kTileRows <= kLanes && kTileColumns % kLanes == 0, "a panel's row is packed by whole vectors");
static_assert(kBlockM % kTileRows == 0 && kBlockN % kTileColumns == 0, "blocks are whole tiles");

std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
std::int64_t rounded_up(std::int64_t value, std::int64_t unit) { return (value + unit - 1) / unit * unit; }

float element(const MatrixView& view, std::int64_t row, std::int64_t column) {
  const std::int64_t index = row * view.row_stride + column * view.column_stride;
  return view.kind == MatrixView::Kind::kBFloat16
             ? bfloat16_to_float(static_cast<const BFloat16Bits*>(view.data)[index])
             : static_cast<const float*>(view.data)[index];
}

// Whether the elements of a row follow each other in memory (for NF4: in the weight).
bool rows_are_runs(const MatrixView& view) {
  return view.kind == MatrixView::Kind::kNf4 ? !view.transposed : view.column_stride == 1;
}

MatrixView flipped(MatrixView view) {
  MatrixView result = view;
  result.row_stride = view.column_stride;
  result.column_stride = view.row_stride;
  result.row_offset = view.column_offset;
  result.column_offset = view.row_offset;
  result.transposed = !view.transposed;
  return result;
}

// `count` elements of `row` from `column` on, as float32: in place if they lie so, else copied to `buffer`.
// NF4 views must have rows that are runs.
const float* row_floats(const MatrixView& view, std::int64_t row, std::int64_t column, std::int64_t count,
                        float* buffer) {
  if (view.kind == MatrixView::Kind::kNf4) {
    const std::int64_t first = (view.row_offset + row) * view.nf4->num_columns + view.column_offset + column;
    nf4_dequantize_floats(*view.nf4, first, first + count, view.round_to_bfloat16, buffer);
    return buffer;
  }
  if (view.column_stride != 1) {
    for (std::int64_t i = 0; i < count; ++i) buffer[i] = element(view, row, column + i);
    return buffer;
  }
  const std::int64_t start = row * view.row_stride + column;
  if (view.kind == MatrixView::Kind::kFloat32) return static_cast<const float*>(view.data) + start;
  const BFloat16Bits* bits = static_cast<const BFloat16Bits*>(view.data) + start;
  for (std::int64_t i = 0; i < count; ++i) buffer[i] = bfloat16_to_float(bits[i]);
  return buffer;
}

// Writes rows [0, num_rows) of `rows`, each num_k floats, as columns: element (r, k) to out[k * width + r];
// rows up to kLanes are zeros. Each store is a whole vector, so where width < kLanes it spills over what the
// next one writes, and the last over kLanes floats behind the panel.
void pack_rows(const float* const* rows, std::int64_t num_rows, std::int64_t num_k, std::int64_t width,
               float* out) {
  std::int64_t k = 0;
  for (; k + kLanes <= num_k; k += kLanes) {
    FloatVector block[kLanes];
    for (int r = 0; r < kLanes; ++r) block[r] = r < num_rows ? load(rows[r] + k) : FloatVector{};
    transpose(block);
    for (int i = 0; i < kLanes; ++i) store(out + (k + i) * width, block[i]);
  }
  for (; k < num_k; ++k) {
    FloatVector column = {};
    for (std::int64_t r = 0; r < num_rows; ++r) column[r] = rows[r][k];
    store(out + k * width, column);
  }
}

// Packs a view whose columns are runs: a few columns at a time, because panels lie a power of two apart and
// would otherwise share cache lines' places.
template <int kWidth>
void pack_columns(const MatrixView& view, std::int64_t row0, std::int64_t num_rows, std::int64_t k0,
                  std::int64_t num_k, float* out) {
  constexpr std::int64_t kColumns = 8;
  const MatrixView flat = flipped(view);
  float* buffer = scratch_floats(Scratch::kGemmRows, kColumns * num_rows);
  for (std::int64_t first = 0; first < num_k; first += kColumns) {
    const std::int64_t num_columns = smaller(kColumns, num_k - first);
    const float* columns[kColumns];
    for (std::int64_t i = 0; i < num_columns; ++i) {
      columns[i] = row_floats(flat, k0 + first + i, row0, num_rows, buffer + i * num_rows);
    }
    for (std::int64_t r0 = 0; r0 < num_rows; r0 += kWidth) {
      const std::int64_t count = smaller(kWidth, num_rows - r0);
      float* to = out + r0 * num_k + first * kWidth;
      for (std::int64_t i = 0; i < num_columns; ++i, to += kWidth) {
        const float* from = columns[i] + r0;
        if (count == kWidth) {
          for (int r = 0; r < kWidth; ++r) to[r] = from[r];
        } else {
          for (int r = 0; r < kWidth; ++r) to[r] = r < count ? from[r] : 0.0f;
        }
      }
    }
  }
}

// Packs rows [row0, row0 + num_rows) and columns [k0, k0 + num_k) of `view` into panels of kWidth rows: panel
// p holds element (row0 + p kWidth + r, k0 + k) at [k * kWidth + r], rows beyond the end as zeros. `out` has
// kLanes to spare.
template <int kWidth>
void pack(const MatrixView& view, std::int64_t row0, std::int64_t num_rows, std::int64_t k0,
          std::int64_t num_k, float* out) {
  const bool columns_are_runs = view.kind == MatrixView::Kind::kNf4 || view.row_stride == 1;
  if (!rows_are_runs(view) && columns_are_runs) {
    return pack_columns<kWidth>(view, row0, num_rows, k0, num_k, out);
  }
  float* buffer = scratch_floats(Scratch::kGemmRows, kLanes * num_k);
  for (std::int64_t r0 = 0; r0 < num_rows; r0 += kWidth, out += kWidth * num_k) {
    for (std::int64_t group = 0; group < kWidth; group += kLanes) {
      const std::int64_t left = num_rows - r0 - group;
      const std::int64_t count = left < 0 ? 0 : smaller(left, smaller(kLanes, kWidth - group));
      const float* rows[kLanes];
      for (std::int64_t r = 0; r < count; ++r) {
        rows[r] = row_floats(view, row0 + r0 + group + r, k0, num_k, buffer + r * num_k);
      }
      pack_rows(rows, count, num_k, kWidth, out + group);
    }
  }
}

// C tile = A panel * B panel over num_k, added to C when `accumulate`; only the first rows x columns are
// written.
void tile(std::int64_t num_k, const float* a, const float* b, float* c, std::int64_t ldc, std::int64_t rows,
          std::int64_t columns, bool accumulate) {
  FloatVector sums[kTileRows][kTileVectors] = {};
  for (std::int64_t k = 0; k < num_k; ++k, a += kTileRows, b += kTileColumns) {
    FloatVector b_row[kTileVectors];
    for (int v = 0; v < kTileVectors; ++v) b_row[v] = load(b + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kTileVectors; ++v) sums[r][v] += a[r] * b_row[v];
    }
  }
  if (rows == kTileRows && columns == kTileColumns) {
    for (int r = 0; r < kTileRows; ++r) {
      for (int v = 0; v < kTileVectors; ++v) {
        float* to = c + r * ldc + v * kLanes;
        store(to, accumulate ? load(to) + sums[r][v] : sums[r][v]);
      }
    }
    return;
  }
  float whole[kTileRows * kTileColumns];
  for (int r = 0; r < kTileRows; ++r) {
    for (int v = 0; v < kTileVectors; ++v) store(whole + r * kTileColumns + v * kLanes, sums[r][v]);
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t j = 0; j < columns; ++j) {
      const float sum = whole[r * kTileColumns + j];
      c[r * ldc + j] = accumulate ? c[r * ldc + j] + sum : sum;
    }
  }
}

float dot(const float* a, const float* b, std::int64_t count) {
  FloatVector sums[4] = {};
  std::int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    for (int s = 0; s < 4; ++s) sums[s] += load(a + i + s * kLanes) * load(b + i + s * kLanes);
  }
  for (; i + kLanes <= count; i += kLanes) sums[0] += load(a + i) * load(b + i);
  float sum = sum_of_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

// sums += factors[0] * rows[0] + factors[1] * rows[1] + ..., n elements each.
void add_rows(const float* factors, const float* const* rows, std::int64_t num_rows, std::int64_t n,
              float* sums) {
  if (num_rows == 4) {
    const float f0 = factors[0], f1 = factors[1], f2 = factors[2], f3 = factors[3];
    const float *r0 = rows[0], *r1 = rows[1], *r2 = rows[2], *r3 = rows[3];
    for (std::int64_t j = 0; j < n; ++j) {
      sums[j] += (f0 * r0[j] + f1 * r1[j]) + (f2 * r2[j] + f3 * r3[j]);
    }
    return;
  }
  for (std::int64_t r = 0; r < num_rows; ++r) {
    for (std::int64_t j = 0; j < n; ++j) sums[j] += factors[r] * rows[r][j];
  }
}

// M <= kFewRows: A as float32 rows, then B^T row by row (dot products) or B row by row (updates of C).
void gemm_few_rows(std::int64_t m, std::int64_t n, std::int64_t k, const MatrixView& a, const MatrixView& b,
                   float* c, std::int64_t ldc, bool accumulate) {
  float* a_rows = scratch_floats(Scratch::kGemmA, m * k);
  for (std::int64_t i = 0; i < m; ++i) {
    const bool runs = rows_are_runs(a) || a.kind != MatrixView::Kind::kNf4;
    if (!runs) {
      const MatrixView columns = flipped(a);
      for (std::int64_t kk = 0; kk < k; ++kk) row_floats(columns, kk, i, 1, a_rows + i * k + kk);
      continue;
    }
    const float* from = row_floats(a, i, 0, k, a_rows + i * k);
    if (from != a_rows + i * k)
      std::memcpy(a_rows + i * k, from, static_cast<std::size_t>(k) * sizeof(float));
  }
  if (rows_are_runs(b)) {
    // Sums of kShortRun products first: one long chain of additions would lose what packed tiles keep.
    float* buffer = scratch_floats(Scratch::kGemmB, (m + kRowsAtOnce) * n);
    float* sums = buffer + kRowsAtOnce * n;
    for (std::int64_t k0 = 0; k0 < k || k0 == 0; k0 += kShortRun) {
      for (std::int64_t i = 0; i < m * n; ++i) sums[i] = 0.0f;
      const std::int64_t k1 = smaller(k, k0 + kShortRun);
      for (std::int64_t kk = k0; kk < k1; kk += kRowsAtOnce) {
        const float* b_rows[kRowsAtOnce];
        const std::int64_t count = smaller(kRowsAtOnce, k1 - kk);
        for (std::int64_t r = 0; r < count; ++r) b_rows[r] = row_floats(b, kk + r, 0, n, buffer + r * n);
        for (std::int64_t i = 0; i < m; ++i) add_rows(a_rows + i * k + kk, b_rows, count, n, sums + i * n);
      }
      const bool add = accumulate || k0 > 0;
      for (std::int64_t i = 0; i < m; ++i) {
        for (std::int64_t j = 0; j < n; ++j)
          c[i * ldc + j] = add ? c[i * ldc + j] + sums[i * n + j] : sums[i * n + j];
      }
    }
    return;
  }
  const MatrixView b_transposed = flipped(b);
  float* buffer = scratch_floats(Scratch::kGemmB, k);
  for (std::int64_t j = 0; j < n; ++j) {
    const float* b_column = row_floats(b_transposed, j, 0, k, buffer);
    for (std::int64_t i = 0; i < m; ++i) {
      const float sum = dot(a_rows + i * k, b_column, k);
      c[i * ldc + j] = accumulate ? c[i * ldc + j] + sum : sum;
    }
  }
}

}  // namespace

void gemm(std::int64_t m, std::int64_t n, std::int64_t k, const MatrixView& a, const MatrixView& b, float* c,
          std::int64_t ldc, bool accumulate) {
  if (m <= 0 || n <= 0) return;
  if (m <= kFewRows || k <= 0) return gemm_few_rows(m, n, k, a, b, c, ldc, accumulate);
  const MatrixView b_transposed = flipped(b);
  float* b_packed = scratch_floats(Scratch::kGemmB, kBlockK * kBlockN + kLanes);
  float* a_packed = scratch_floats(Scratch::kGemmA, kBlockM * kBlockK + kLanes);
  for (std::int64_t n0 = 0; n0 < n; n0 += kBlockN) {
    const std::int64_t num_n = smaller(kBlockN, n - n0);
    for (std::int64_t k0 = 0; k0 < k; k0 += kBlockK) {
      const std::int64_t num_k = smaller(kBlockK, k - k0);
      pack<kTileColumns>(b_transposed, n0, num_n, k0, num_k, b_packed);
      for (std::int64_t m0 = 0; m0 < m; m0 += kBlockM) {
        const std::int64_t num_m = smaller(kBlockM, m - m0);
        pack<kTileRows>(a, m0, num_m, k0, num_k, a_packed);
        for (std::int64_t j = 0; j < rounded_up(num_n, kTileColumns); j += kTileColumns) {
          for (std::int64_t i = 0; i < rounded_up(num_m, kTileRows); i += kTileRows) {
            tile(num_k, a_packed + i * num_k, b_packed + j * num_k, c + (m0 + i) * ldc + n0 + j, ldc,
                 smaller(kTileRows, num_m - i), smaller(kTileColumns, num_n - j), accumulate || k0 > 0);
          }
        }
      }
    }
  }
}

}  // namespace pyft::cpu::PYFT_ISA
