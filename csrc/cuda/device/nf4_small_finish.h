// The end of nf4_gemm_small.cu's tiles: sums become outputs, or parts of them for the second kernel.
#pragma once

#include "cuda/device/nf4_small.h"

namespace pyft::cuda {

// Of 8 tokens of a tile, the outputs that a thread finishes: one row, four tokens a pass.
template <bool kBackward>
struct Finish {
  static constexpr int kTile = nf4_small_tile(kBackward), kStride = kNf4SmallThreads / kTile, kCount = 4;
  static constexpr int kPasses = 8 / (kStride * kCount);
  int row = static_cast<int>(threadIdx.x) % kTile;
  int token;  // the first; the others follow at kStride

  __device__ __forceinline__ Finish(int first_token, int pass)
      : token(first_token + static_cast<int>(threadIdx.x) / kTile + pass * kCount * kStride) {}

  // `sums` plus what else belongs to them, rounded and stored.
  __device__ __forceinline__ void store(const SmallGemm& gemm, int tile, float (&sums)[kCount]) const {
    const int output = tile * kTile + row;
    if (output >= gemm.num_outputs) return;
    const std::int64_t wide_output = output;
#pragma unroll 1
    for (int r = 0; r < gemm.rank; r += 4) {
      float4 right;
      if constexpr (kBackward) {
        const float* const from = gemm.adapter + static_cast<std::int64_t>(r) * gemm.num_outputs + output;
        right = make_float4(from[0], from[gemm.num_outputs], from[2 * gemm.num_outputs],
                            from[3 * gemm.num_outputs]);
      } else {
        right = *reinterpret_cast<const float4*>(gemm.adapter + wide_output * gemm.rank + r);
      }
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (token + i * kStride >= gemm.num_tokens) continue;
        const float4 left =
            *reinterpret_cast<const float4*>(gemm.projected + (token + i * kStride) * gemm.rank + r);
        sums[i] += left.x * right.x + left.y * right.y + (left.z * right.z + left.w * right.w);
      }
    }
    const float bias = gemm.bias ? to_float(gemm.bias[output]) : 0.0f;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (token + i * kStride < gemm.num_tokens)
        gemm.out[(token + i * kStride) * static_cast<std::int64_t>(gemm.num_outputs) + output] =
            __float2bfloat16_rn(sums[i] + bias);
    }
  }
};

// Where a block leaves its sums of a tile that it shares: one tile at most that it does not begin, and one
// that it begins and does not end.
__device__ __forceinline__ float* partial_sums(const SmallGemm& gemm, int block, int tile) {
  const bool begins_it = nf4_small_first_unit(block, gemm.num_units, gemm.num_blocks) <=
                         static_cast<std::int64_t>(tile) * gemm.num_steps;
  return gemm.partials + (2 * block + begins_it) * static_cast<std::int64_t>(gemm.num_tokens * gemm.tile);
}

}  // namespace pyft::cuda
