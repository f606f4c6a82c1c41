// How gemm_kernels.cpp reads its operands: any orientation and element type becomes float32 panels, or panels
// of bfloat16 pairs (bfloat16_pairs.h). Included by sources compiled once per instruction set.
//
//   panel p of kWidth rows, num_k long, at out + p * kWidth * num_k:
//     k=0  r0 r1 ... r(kWidth - 1)        element (p * kWidth + r, k) at [k * kWidth + r], zeros where a row
//     k=1  r0 r1 ...                      lies beyond the end
//     ...
//
// A panel of pairs has half the rows: bfloat16 values of k (low half) and k + 1 (high half) in one float's
// place.
//
// An NF4 weight whose rows are whole blocks is dequantised straight into its panel; other sizes go through a
// row of float32.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/kernel_table.h"
#include "cpu/nf4_block.h"
#include "cpu/scratch.h"
#include "cpu/vector.h"
#include "pyft/nf4_format.h"

namespace pyft::cpu::PYFT_ISA {

static inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

static inline float element(const MatrixView& view, std::int64_t row, std::int64_t column) {
  const std::int64_t index = row * view.row_stride + column * view.column_stride;
  return view.kind == MatrixView::Kind::kBFloat16
             ? bfloat16_to_float(static_cast<const BFloat16Bits*>(view.data)[index])
             : static_cast<const float*>(view.data)[index];
}

// Whether the elements of a row follow each other in memory (for NF4: in the weight).
static inline bool rows_are_runs(const MatrixView& view) {
  return view.kind == MatrixView::Kind::kNf4 ? !view.transposed : view.column_stride == 1;
}

static inline MatrixView flipped(MatrixView view) {
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
static inline const float* row_floats(const MatrixView& view, std::int64_t row, std::int64_t column,
                                      std::int64_t count, float* buffer) {
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

// Fetches what row_floats will read of a dense row of `view`, or of one beyond its end.
static inline void prefetch_row(const MatrixView& view, std::int64_t row, std::int64_t column,
                                std::int64_t count) {
  if (view.kind == MatrixView::Kind::kNf4) return;
  constexpr std::int64_t kLineBytes = 64;
  const std::int64_t element_bytes = view.kind == MatrixView::Kind::kBFloat16 ? 2 : 4;
  const std::int64_t first = (row * view.row_stride + column * view.column_stride) * element_bytes;
  const std::uintptr_t start =
      reinterpret_cast<std::uintptr_t>(view.data) + static_cast<std::uintptr_t>(first);
  for (std::int64_t byte = 0; byte < count * element_bytes; byte += kLineBytes) {
    __builtin_prefetch(reinterpret_cast<const void*>(start + static_cast<std::uintptr_t>(byte)));
  }
}

// Writes rows [0, num_rows) of `rows`, each num_k floats, as columns: element (r, k) to out[k * width + r];
// rows up to kLanes are zeros. Each store is a whole vector, so where width < kLanes it spills over what the
// next one writes, and the last over kLanes floats behind the panel.
static inline void pack_rows(const float* const* rows, std::int64_t num_rows, std::int64_t num_k,
                             std::int64_t width, float* out) {
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
// would otherwise share cache lines' places. The next few are fetched meanwhile: no prefetcher of the
// hardware sees such short runs.
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
      prefetch_row(flat, k0 + first + kColumns + i, row0, num_rows);
      columns[i] = row_floats(flat, k0 + first + i, row0, num_rows, buffer + i * num_rows);
    }
    for (std::int64_t r0 = 0; r0 < num_rows; r0 += kWidth) {
      const std::int64_t count = smaller(kWidth, num_rows - r0);
      float* to = out + r0 * num_k + first * kWidth;
      for (std::int64_t i = 0; i < num_columns; ++i, to += kWidth) {
        const float* from = columns[i] + r0;
        if (count == kWidth) {
          std::memcpy(to, from, kWidth * sizeof(float));
        } else {
          for (int r = 0; r < kWidth; ++r) to[r] = r < count ? from[r] : 0.0f;
        }
      }
    }
  }
}

// Packs whole blocks of an NF4 weight; false where the part asked for is not made of them.
template <int kWidth>
bool pack_nf4_blocks(const MatrixView& view, std::int64_t row0, std::int64_t num_rows, std::int64_t k0,
                     std::int64_t num_k, float* out) {
  const Nf4View& weight = *view.nf4;
  const std::int64_t first_row = view.row_offset + row0, first_k = view.column_offset + k0;
  if (weight.num_columns % kNf4BlockSize) return false;
  if (view.transposed) {
    if (first_row % kNf4BlockSize || num_rows % kNf4BlockSize || kNf4BlockSize % kWidth) return false;
    nf4_dequantize_runs(weight, first_k, num_k, first_row, num_rows, view.round_to_bfloat16, kWidth, out);
    return true;
  }
  if (first_k % kNf4BlockSize || num_k % (8 * kLanes) || num_k % kNf4BlockSize) return false;
  for (std::int64_t r0 = 0; r0 < num_rows; r0 += kWidth, out += kWidth * num_k) {
    for (std::int64_t lane0 = 0; lane0 < kWidth; lane0 += kLanes) {
      const std::int64_t left = num_rows - r0 - lane0;
      nf4_dequantize_transposed(weight, first_row + r0 + lane0, left < 0 ? 0 : smaller(left, kLanes), first_k,
                                num_k, view.round_to_bfloat16, kWidth, out + lane0);
    }
  }
  return true;
}

// Packs rows [row0, row0 + num_rows) and columns [k0, k0 + num_k) of `view`. `out` has kLanes to spare.
template <int kWidth>
void pack(const MatrixView& view, std::int64_t row0, std::int64_t num_rows, std::int64_t k0,
          std::int64_t num_k, float* out) {
  const bool is_nf4 = view.kind == MatrixView::Kind::kNf4;
  if (is_nf4 && pack_nf4_blocks<kWidth>(view, row0, num_rows, k0, num_k, out)) return;
  if (!rows_are_runs(view) && (is_nf4 || view.row_stride == 1)) {
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
      for (std::int64_t r = 0; r < count; ++r) {
        prefetch_row(view, row0 + r0 + group + smaller(kLanes, kWidth) + r, k0, num_k);
      }
      pack_rows(rows, count, num_k, kWidth, out + group);
    }
  }
}

// Makes pairs of panels whose values are bfloat16, in place; a panel begins where it began.
template <int kWidth>
void pair_panels(std::int64_t num_rows, std::int64_t num_k, float* panels) {
  for (std::int64_t r0 = 0; r0 < num_rows; r0 += kWidth, panels += kWidth * num_k) {
    for (std::int64_t k = 0; k < num_k; k += 2) {
      std::uint32_t low[kWidth], high[kWidth] = {};
      std::memcpy(low, panels + k * kWidth, sizeof low);
      if (k + 1 < num_k) std::memcpy(high, panels + (k + 1) * kWidth, sizeof high);
      for (int r = 0; r < kWidth; ++r) low[r] = low[r] >> 16 | (high[r] & 0xffff0000u);
      std::memcpy(panels + k / 2 * kWidth, low, sizeof low);
    }
  }
}

}  // namespace pyft::cpu::PYFT_ISA
