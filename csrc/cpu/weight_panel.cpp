#include "cpu/weight_panel.h"

#include <cstring>

namespace pyft::cpu {

Nf4View nf4_pointers(const Nf4Tensors& weight) {
  Nf4View view{};
  view.codes = weight.codes.as<const std::uint8_t>();
  view.num_rows = weight.num_rows;
  view.num_columns = weight.num_columns;
  if (weight.absmax.defined) {
    view.absmax = weight.absmax.as<const float>();
  } else {
    view.absmax_codes = weight.absmax_codes.as<const std::uint8_t>();
    view.nested_absmax = weight.nested_absmax.as<const float>();
    view.offset = *weight.offset.as<const float>();
  }
  return view;
}

WeightPanel::WeightPanel(const Nf4Tensors& weight, DType compute_dtype)
    : nf4_(nf4_pointers(weight)), num_rows_(weight.num_rows), num_columns_(weight.num_columns) {
  view_ = nf4_view(nf4_, compute_dtype == DType::kBFloat16);
}

WeightPanel::WeightPanel(const TensorRef& weight)
    : num_rows_(weight.shape[0]), num_columns_(weight.shape[1]) {
  view_ = dense_view(weight.data, weight.dtype, weight.strides[0], weight.strides[1]);
}

void WeightPanel::fill_rows(std::int64_t n0, std::int64_t n1, float* out) const {
  if (view_.kind == MatrixView::Kind::kNf4) {
    kernels().nf4_dequantize_floats(nf4_, n0 * num_columns_, n1 * num_columns_, view_.round_to_bfloat16, out);
    return;
  }
  for (std::int64_t n = n0; n < n1; ++n, out += num_columns_) {
    const MatrixView row = offset_view(view_, n, 0);
    for (std::int64_t k = 0; k < num_columns_; ++k) {
      out[k] = row.kind == MatrixView::Kind::kBFloat16
                   ? bfloat16_to_float(static_cast<const BFloat16Bits*>(row.data)[k * row.column_stride])
                   : static_cast<const float*>(row.data)[k * row.column_stride];
    }
  }
}

}  // namespace pyft::cpu
