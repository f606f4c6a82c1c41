// Products whose A has few rows: packing panels of B would cost more than multiplying. B's rows are used
// where they lie, as dot products (rows along K) or as updates of C (rows along N). Included by
// gemm_kernels.cpp; B in NF4 has its own file, gemm_few_nf4_rows.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/gemm_packing.h"
#include "cpu/scratch.h"
#include "cpu/vector.h"

namespace pyft::cpu::PYFT_ISA {

constexpr std::int64_t kFewRows = 8;
constexpr std::int64_t kShortRun = 32;
constexpr std::int64_t kRowsAtOnce = 4;

// A's rows as float32, one behind the other.
static inline const float* copy_rows(std::int64_t m, std::int64_t k, const MatrixView& a) {
  float* rows = scratch_floats(Scratch::kGemmA, m * k);
  for (std::int64_t i = 0; i < m; ++i) {
    float* to = rows + i * k;
    const float* from = row_floats(a, i, 0, k, to);
    if (from != to) std::memcpy(to, from, static_cast<std::size_t>(k) * sizeof(float));
  }
  return rows;
}

static inline float dot(const float* a, const float* b, std::int64_t count) {
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
static inline void add_rows(const float* factors, const float* const* rows, std::int64_t num_rows,
                            std::int64_t n, float* sums) {
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

// M <= kFewRows, B dense: A as float32 rows, then B^T row by row (dot products) or B row by row (updates of
// C).
static inline void gemm_few_rows(std::int64_t m, std::int64_t n, std::int64_t k, const MatrixView& a,
                                 const MatrixView& b, float* c, std::int64_t ldc, bool accumulate) {
  const float* a_rows = copy_rows(m, k, a);
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

}  // namespace pyft::cpu::PYFT_ISA
