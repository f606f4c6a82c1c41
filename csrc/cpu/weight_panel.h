// A weight [N, K] of either kind, dense or NF4, as the operations read it: a view for gemm, and float32 rows
// for code that wants the numbers themselves.
#pragma once

#include <cstdint>

#include "cpu/gemm.h"
#include "pyft/ops.h"

namespace pyft::cpu {

class WeightPanel {
 public:
  // Keeps pointers into the tensors; dequantised values are rounded to `compute_dtype`, in products to it or
  // finer.
  WeightPanel(const Nf4Tensors& weight, DType compute_dtype);
  // `weight` is float32 or bfloat16 [N, K] with unit column stride.
  explicit WeightPanel(const TensorRef& weight);

  WeightPanel(const WeightPanel&) = delete;  // the view points into this object
  WeightPanel& operator=(const WeightPanel&) = delete;

  std::int64_t num_rows() const { return num_rows_; }
  std::int64_t num_columns() const { return num_columns_; }

  // W [N, K]; transposed(view()) is W^T.
  const MatrixView& view() const { return view_; }

  // Rows [n0, n1) as float32, row-major with row stride num_columns().
  void fill_rows(std::int64_t n0, std::int64_t n1, float* out) const;

 private:
  Nf4View nf4_{};
  MatrixView view_{};
  std::int64_t num_rows_;
  std::int64_t num_columns_;
};

Nf4View nf4_pointers(const Nf4Tensors& weight);

}  // namespace pyft::cpu
