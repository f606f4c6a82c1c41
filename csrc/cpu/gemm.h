// Single-threaded float32 matrix products on the instruction set in use. Callers split the work over threads
// (parallel.h) by tiles of C; the bits of C do not depend on how.
//
//     gemm_nt: C [M, N] = A [M, K] B^T,  B [N, K]      y = x W^T
//     gemm_nn: C [M, N] = A [M, K] B,    B [K, N]      dX = dY W
//     gemm_tn: C [M, N] = A^T B,  A [K, M], B [K, N]   dW = dY^T x
//
// Row strides lda, ldb, ldc are in elements. `accumulate` adds to C instead of overwriting it.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "cpu/kernels.h"

namespace pyft::cpu {

inline MatrixView dense_view(const void* data, DType dtype, std::int64_t row_stride,
                             std::int64_t column_stride = 1) {
  MatrixView view{};
  view.kind = dtype == DType::kBFloat16 ? MatrixView::Kind::kBFloat16 : MatrixView::Kind::kFloat32;
  view.data = data;
  view.row_stride = row_stride;
  view.column_stride = column_stride;
  return view;
}

inline MatrixView nf4_view(const Nf4View& weight, bool round_to_bfloat16) {
  MatrixView view{};
  view.kind = MatrixView::Kind::kNf4;
  view.nf4 = &weight;
  view.round_to_bfloat16 = round_to_bfloat16;
  return view;
}

inline MatrixView transposed(MatrixView view) {
  const std::int64_t row_stride = view.row_stride;
  view.row_stride = view.column_stride;
  view.column_stride = row_stride;
  const std::int64_t row_offset = view.row_offset;
  view.row_offset = view.column_offset;
  view.column_offset = row_offset;
  view.transposed = !view.transposed;
  return view;
}

// The part of `view` that begins at element (row, column).
inline MatrixView offset_view(MatrixView view, std::int64_t row, std::int64_t column) {
  if (view.kind == MatrixView::Kind::kNf4) {
    view.row_offset += row;
    view.column_offset += column;
  } else {
    const std::int64_t element_bytes = view.kind == MatrixView::Kind::kBFloat16 ? 2 : 4;
    view.data = static_cast<const char*>(view.data) +
                (row * view.row_stride + column * view.column_stride) * element_bytes;
  }
  return view;
}

inline void gemm(std::int64_t m, std::int64_t n, std::int64_t k, const MatrixView& a, const MatrixView& b,
                 float* c, std::int64_t ldc, bool accumulate) {
  kernels().gemm(m, n, k, a, b, c, ldc, accumulate);
}

inline void gemm_nt(std::int64_t m, std::int64_t n, std::int64_t k, const float* a, std::int64_t lda,
                    const float* b, std::int64_t ldb, float* c, std::int64_t ldc, bool accumulate) {
  gemm(m, n, k, dense_view(a, DType::kFloat32, lda), transposed(dense_view(b, DType::kFloat32, ldb)), c, ldc,
       accumulate);
}

inline void gemm_nn(std::int64_t m, std::int64_t n, std::int64_t k, const float* a, std::int64_t lda,
                    const float* b, std::int64_t ldb, float* c, std::int64_t ldc, bool accumulate) {
  gemm(m, n, k, dense_view(a, DType::kFloat32, lda), dense_view(b, DType::kFloat32, ldb), c, ldc, accumulate);
}

inline void gemm_tn(std::int64_t m, std::int64_t n, std::int64_t k, const float* a, std::int64_t lda,
                    const float* b, std::int64_t ldb, float* c, std::int64_t ldc, bool accumulate) {
  gemm(m, n, k, transposed(dense_view(a, DType::kFloat32, lda)), dense_view(b, DType::kFloat32, ldb), c, ldc,
       accumulate);
}

}  // namespace pyft::cpu
