// The host's side of nf4_gemm_small.cu: arguments checked and put together for its kernels.
#pragma once

#include "cuda/device/nf4_small.h"

namespace pyft::cuda {

inline SmallGemm small_gemm(const Nf4Tensors& weight, const TensorRef& in, const TensorRef& out,
                            const TensorRef& bias, const Nf4Addend& addend) {
  SmallGemm gemm{};
  gemm.weight = nf4_source(weight);
  gemm.num_rows = static_cast<int>(weight.num_rows), gemm.num_columns = static_cast<int>(weight.num_columns);
  gemm.in = in.as<const __nv_bfloat16>();
  gemm.out = out.as<__nv_bfloat16>();
  gemm.bias = bias.defined ? bias.as<const __nv_bfloat16>() : nullptr;
  if (addend.projected.defined) {
    gemm.projected = addend.projected.as<const float>();
    gemm.adapter = addend.adapter.as<const float>();
    gemm.rank = static_cast<int>(addend.projected.shape[1]);
  }
  gemm.num_tokens = static_cast<int>(in.shape[0]);
  gemm.num_summed = static_cast<int>(in.shape[1]), gemm.num_outputs = static_cast<int>(out.shape[1]);
  return gemm;
}

inline void check_small(const char* op, const TensorRef& in, const Nf4Tensors& weight,
                        const Nf4Addend& addend, int row_multiple) {
  check(in.dtype == DType::kBFloat16 && in.shape[0] > 0 && in.shape[0] <= kNf4SmallMostTokens, op, ": ",
        in.name, " is ", dtype_name(in.dtype), " ", shape_text(in),
        ", on cuda this takes bfloat16 with 1 to ", kNf4SmallMostTokens, " tokens");
  check(weight.num_columns > 0 && weight.num_rows > 0 && weight.num_columns % kNf4BlockSize == 0 &&
            weight.num_rows % row_multiple == 0 && weight.num_rows < 1 << 30 && weight.num_columns < 1 << 30,
        op, ": weight is [", weight.num_rows, ", ", weight.num_columns,
        "], on cuda the sizes must be multiples of ", row_multiple, " and ", kNf4BlockSize);
  const bool has_words = !weight.absmax_codes.defined || is_aligned(weight.absmax_codes.data, 4);
  const bool has_quads = !addend.projected.defined ||
                         (is_aligned(addend.projected.data, 16) && is_aligned(addend.adapter.data, 16));
  check(is_aligned(in.data, 16) && is_aligned(weight.codes.data, 16) && has_words && has_quads, op, ": ",
        in.name, ", codes, projected and adapter must begin at multiples of 16 bytes, absmax_codes of 4");
}

// Whether blocks share tiles, and then have room for their sums.
inline bool check_partition(const char* op, const SmallGemm& gemm, const Nf4Partition& partition) {
  check(gemm.num_blocks > 0 && gemm.num_blocks <= gemm.num_units, op, ": num_blocks is ", gemm.num_blocks,
        ", expected 1 to ", gemm.num_units);
  if (gemm.num_units / gemm.num_steps % gemm.num_blocks == 0) return false;
  const std::int64_t floats = partition.workspace.defined ? partition.workspace.num_elements() : 0;
  const std::int64_t needed = std::int64_t{2} * gemm.num_blocks * gemm.num_tokens * gemm.tile;
  check(floats >= needed, op, ": workspace has ", floats, " elements, ", gemm.num_blocks, " blocks need ",
        needed);
  return true;
}

}  // namespace pyft::cuda
