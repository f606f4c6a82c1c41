// What the LoRA kernels share. Each works on a wide matrix [T, W], x, dY or an output, in tiles of 64 tokens
// by 128 columns with a block of 8 warps, beside two narrow float32 ones:
//
//                W                       wide    [64][128]      elements as they are, or float32 sums
//        +----+----+----+                factor  [rank][128..]  A or B, as planes (split_float.h), rank first
//      T | 64 x 128|    |   rows [T, R]  rows    [64][rank]     S or dS, as planes
//        +----+----+----+                rank is padded to 16, 32 or 64; what lies outside a matrix is zero
//         factor [W, R]
//
// Tokens, columns and ranks may end anywhere; where rows are multiples of 16 bytes they go by 16 bytes.
#pragma once

#include "cuda/device/philox.h"
#include "cuda/device/split_float.h"

namespace pyft::cuda {

constexpr int kLoraThreads = 256;
constexpr int kTileTokens = static_cast<int>(kLoraTileTokens);
constexpr int kTileColumns = static_cast<int>(kLoraTileColumns);
constexpr int kRunsPerThread = kTileTokens * kTileColumns / (8 * kLoraThreads);

template <typename T>
struct WideMatrix {
  T* data;
  std::int64_t num_tokens, num_columns;
  bool is_aligned;  // rows are multiples of 16 bytes
  DropoutMask mask;

  __device__ __forceinline__ bool takes_eight(std::int64_t column) const {
    return is_aligned && column + 8 <= num_columns;
  }
};

template <typename T>
WideMatrix<T> wide_matrix(const TensorRef& tensor, const Dropout& dropout = {0.0, 0}) {
  T* const data = tensor.as<T>();
  const std::int64_t width = tensor.shape[1];
  return {data, tensor.shape[0], width,
          is_aligned(data, 16) && width * static_cast<std::int64_t>(sizeof(T)) % 16 == 0,
          dropout_mask(dropout)};
}

// Eight neighbouring elements on their way from global to shared memory.
template <typename T>
struct StagedRun {
  std::uint32_t words[2 * sizeof(T)];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (unsigned i = 0; i < 2 * sizeof(T); ++i) words[i] = 0;
  }
  __device__ __forceinline__ void set(int i, float value) { words[i] = __float_as_uint(value); }
  __device__ __forceinline__ void keep(std::uint32_t bits) {
#pragma unroll
    for (unsigned i = 0; i < 2 * sizeof(T); ++i) {
      if constexpr (sizeof(T) == 4) {
        words[i] = bits >> i & 1u ? words[i] : 0u;
      } else {
        words[i] &= (bits >> 2 * i & 1u ? 0x0000ffffu : 0u) | (bits >> 2 * i & 2u ? 0xffff0000u : 0u);
      }
    }
  }
};

template <>
__device__ __forceinline__ void StagedRun<__nv_bfloat16>::set(int i, float value) {
  words[i / 2] |= __float_as_uint(value) >> 16 << 16 * (i % 2);
}

// Where a thread's run number j begins in a tile.
struct TilePlace {
  int row, column;
};
__device__ __forceinline__ TilePlace place_of(int j) {
  constexpr int kRuns = kTileColumns / 8;  // of a row
  const int thread = static_cast<int>(threadIdx.x);
  return {thread / kRuns + j * (kLoraThreads / kRuns), thread % kRuns * 8};
}

template <typename T>
__device__ __forceinline__ void fetch_tile(StagedRun<T> (&staged)[kRunsPerThread],
                                           const WideMatrix<const T>& wide, std::int64_t t0,
                                           std::int64_t w0) {
#pragma unroll
  for (int j = 0; j < kRunsPerThread; ++j) {
    const TilePlace place = place_of(j);
    const std::int64_t t = t0 + place.row, w = w0 + place.column;
    StagedRun<T>& run = staged[j];
    run.clear();
    if (t >= wide.num_tokens || w >= wide.num_columns) continue;
    const T* const from = wide.data + t * wide.num_columns + w;
    if (wide.takes_eight(w)) {
#pragma unroll
      for (unsigned q = 0; q < sizeof(T) / 2; ++q) {
        const uint4 quad = reinterpret_cast<const uint4*>(from)[q];
        run.words[4 * q] = quad.x, run.words[4 * q + 1] = quad.y;
        run.words[4 * q + 2] = quad.z, run.words[4 * q + 3] = quad.w;
      }
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (w + i < wide.num_columns) run.set(i, to_float(from[i]));
      }
    }
  }
}

// Into shared memory, without what dropout drops.
template <typename T>
__device__ __forceinline__ void put_tile(T* tile, StagedRun<T> (&staged)[kRunsPerThread],
                                         const WideMatrix<const T>& wide, std::int64_t t0, std::int64_t w0) {
#pragma unroll
  for (int j = 0; j < kRunsPerThread; ++j) {
    const TilePlace place = place_of(j);
    StagedRun<T>& run = staged[j];
    if (wide.mask.is_active)
      run.keep(keep_eight(wide.mask, (t0 + place.row) * wide.num_columns + w0 + place.column));
    uint4* const to = reinterpret_cast<uint4*>(tile + place.row * padded<T>(kTileColumns) + place.column);
#pragma unroll
    for (unsigned q = 0; q < sizeof(T) / 2; ++q)
      to[q] = make_uint4(run.words[4 * q], run.words[4 * q + 1], run.words[4 * q + 2], run.words[4 * q + 3]);
  }
}

}  // namespace pyft::cuda
