// The narrow float32 matrices of the LoRA kernels, and the two products of a tile with them (lora_tile.h
// draws all):
//
//     rows    [64, rank]  += tile factor^T      a warp: 16 tokens and half of the ranks
//     columns [128, rank] += tile^T rows        a warp: 16 columns and all ranks
#pragma once

#include "cuda/device/lora_tile.h"

namespace pyft::cuda {

// A slice of A or B: entry (r, w) at data[r * rank_stride + w * column_stride].
struct LoraFactor {
  float* data;
  std::int64_t rank_stride, column_stride;
  std::int64_t rank, num_columns;
};

inline LoraFactor factor_of(const TensorRef& matrix, bool is_lora_A) {
  const std::int64_t rows = matrix.shape[0], columns = matrix.shape[1];
  if (is_lora_A) return {matrix.as<float>(), columns, 1, rows, columns};
  return {matrix.as<float>(), 1, columns, columns, rows};
}

// From the rank `first` on, at most `count` of them.
inline LoraFactor slice(LoraFactor factor, std::int64_t first, std::int64_t count) {
  factor.data += first * factor.rank_stride;
  factor.rank = factor.rank - first < count ? factor.rank - first : count;
  return factor;
}

// planes [kRank][padded(kColumns)] = columns w0 .. of the factor.
template <int kPlanes, int kRank, int kColumns, typename T>
__device__ __forceinline__ void put_factor(T* planes, const LoraFactor& factor, std::int64_t w0) {
  constexpr int kStride = padded<T>(kColumns);
  const bool columns_first = factor.column_stride == 1;
  for (int i = static_cast<int>(threadIdx.x); i < kRank * kColumns; i += kLoraThreads) {
    const int r = columns_first ? i / kColumns : i % kRank, w = columns_first ? i % kColumns : i / kRank;
    const bool exists = r < factor.rank && w0 + w < factor.num_columns;
    const float value = exists ? factor.data[r * factor.rank_stride + (w0 + w) * factor.column_stride] : 0.0f;
    store_split<kPlanes>(planes + r * kStride + w, kRank * kStride, value);
  }
}

// planes [64][padded(kRank)] = rows t0 .. of S or dS [T, stride], of which `rank` columns count.
template <int kPlanes, int kRank, typename T>
__device__ __forceinline__ void put_rows(T* planes, const float* rows, std::int64_t stride, std::int64_t rank,
                                         std::int64_t t0, std::int64_t num_tokens) {
  constexpr int kStride = padded<T>(kRank);
  for (int i = static_cast<int>(threadIdx.x); i < kTileTokens * kRank; i += kLoraThreads) {
    const int t = i / kRank, r = i % kRank;
    const float value = r < rank && t0 + t < num_tokens ? rows[(t0 + t) * stride + r] : 0.0f;
    store_split<kPlanes>(planes + t * kStride + r, kTileTokens * kStride, value);
  }
}

// acc += the rows product of this warp; `planes` of the factor from the tile's first column on.
template <int kRankTiles, int kFactorColumns, typename T>
__device__ __forceinline__ void add_rows(float (&acc)[kRankTiles / 2][4], const T* tile, const T* planes) {
  constexpr int kPlanes = num_planes<T>(3), kTileStride = padded<T>(kTileColumns);
  constexpr int kStride = padded<T>(kFactorColumns), kPlane = 8 * kRankTiles * kStride;
  const int warp = warp_of_block();
  const T* const own = tile + warp % 4 * 16 * kTileStride;
  const T* const ranks = planes + warp / 4 * (kRankTiles / 2) * 8 * kStride;
#pragma unroll 1
  for (int k = 0; k < kTileColumns; k += 32) {
    Left<T, 1> left[2];
    left[0].template load<false>(own + k, kTileStride, 0);
    left[1].template load<false>(own + k + 16, kTileStride, 0);
#pragma unroll
    for (int j = 0; j < kRankTiles / 2; ++j) {
      Right<T, kPlanes> right;
      right.template load<false, true>(ranks + 8 * j * kStride + k, kStride, kPlane);
      multiply(acc[j], left[0], right, 0);
      multiply(acc[j], left[1], right, 1);
    }
  }
}

// acc += the columns product of this warp; `planes` of the rows.
template <int kRankTiles, typename T>
__device__ __forceinline__ void add_columns(float (&acc)[kRankTiles][4], const T* tile, const T* planes) {
  constexpr int kPlanes = num_planes<T>(3), kTileStride = padded<T>(kTileColumns);
  constexpr int kStride = padded<T>(8 * kRankTiles), kPlane = kTileTokens * kStride;
  const T* const own = tile + 16 * warp_of_block();
#pragma unroll 1
  for (int k = 0; k < kTileTokens; k += 32) {
    Left<T, 1> left[2];
    left[0].template load<true>(own + k * kTileStride, kTileStride, 0);
    left[1].template load<true>(own + (k + 16) * kTileStride, kTileStride, 0);
#pragma unroll
    for (int j = 0; j < kRankTiles; ++j) {
      Right<T, kPlanes> right;
      right.template load<true, true>(planes + k * kStride + 8 * j, kStride, kPlane);
      multiply(acc[j], left[0], right, 0);
      multiply(acc[j], left[1], right, 1);
    }
  }
}

// Where a rows product goes: rows t0 .. of a float32 matrix [T, stride], `rank` columns from `data` on.
struct RowsOut {
  float* data;
  std::int64_t stride, rank;
  std::int64_t part_stride;  // from one part of the sum to the next
  float scale;
};

template <int kRankTiles>
__device__ __forceinline__ void store_rows(const float (&acc)[kRankTiles / 2][4], const RowsOut& out,
                                           std::int64_t part, std::int64_t t0, std::int64_t num_tokens) {
  const int lane = lane_of_warp(), warp = warp_of_block();
#pragma unroll
  for (int j = 0; j < kRankTiles / 2; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::int64_t t = t0 + warp % 4 * 16 + lane / 4 + i / 2 * 8;
      const std::int64_t r = 8 * (warp / 4 * (kRankTiles / 2) + j) + lane % 4 * 2 + i % 2;
      if (t < num_tokens && r < out.rank)
        out.data[part * out.part_stride + t * out.stride + r] = out.scale * acc[j][i];
    }
  }
}

}  // namespace pyft::cuda
