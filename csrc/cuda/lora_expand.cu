// From rank back to a wide matrix, written or added to:
//
//     lora_expand            y  = [y  +] S B^T + bias             [T, N]
//     lora_expand_backward   dX = [dX +] drop'(dS A)              [T, K]
//
//            128 columns of the output
//           +-------+-------+---
//       64  | p     |       |       block (i, p) of 8 warps: columns 128 i .. 128 i + 127, and of their
//    tokens +-------+-------+---    tiles of 64 tokens those numbered p, p + P, p + 2 P, ..
//           | p + 1 |       |
//           +-------+-------+---
//
//     a tile   each warp sums 16 tokens by 64 columns over the rank, in slices of at most 64
//              the sums go to shared memory, float32 [64][132]; from there 16 lanes take a row, eight columns
//              each: bias, dropout's mask, what is there already, one rounding
//
// A or B is turned into planes once for all tiles of a block where the rank fits one slice. Two planes of
// both operands, in three products, leave an error of 2^-17, which the rounding to bfloat16 hides. Shared
// memory, bfloat16: 34 KB of sums, 9, 17 or 34 KB of A or B, 6, 10 or 18 KB of S. Assumed and checked in
// dispatch: shapes, contiguity.
#include "cuda/lora_launch.h"
#include "cuda/operations.h"

namespace pyft::cuda {
namespace {

constexpr int kPlanesWanted = 2;
constexpr int kColumnTiles = 8;  // of a warp, 8 columns each
constexpr int kSumStride = padded<float>(kTileColumns);

template <typename T, int kRankTiles>
struct ExpandShared {
  static constexpr int kSums = kTileTokens * kSumStride;
  static constexpr int kFactor = num_planes<T>(kPlanesWanted) * 8 * kRankTiles * padded<T>(kTileColumns);
  static constexpr int kRows = num_planes<T>(kPlanesWanted) * kTileTokens * padded<T>(8 * kRankTiles);
  static constexpr std::size_t kBytes = sizeof(float) * kSums + sizeof(T) * (kFactor + kRows);
};

template <typename T>
struct ExpandJob {
  const float* rows;  // S or dS [T, R]
  LoraFactor factor;
  const T* bias;  // or null
  bool accumulates;
  float scale;
};

// acc += S A of one slice of ranks, or S B^T; this warp's 16 tokens by 64 columns.
template <int kRankTiles, typename T>
__device__ __forceinline__ void add_slice(float (&acc)[kColumnTiles][4], const T* rows, const T* factor) {
  constexpr int kPlanes = num_planes<T>(kPlanesWanted), kRank = 8 * kRankTiles;
  constexpr int kRowStride = padded<T>(kRank), kStride = padded<T>(kTileColumns);
  const int warp = warp_of_block();
#pragma unroll
  for (int k = 0; k < kRank; k += 16) {
    Left<T, kPlanes> left;
    left.template load<false>(rows + warp % 4 * 16 * kRowStride + k, kRowStride, kTileTokens * kRowStride);
#pragma unroll
    for (int j = 0; j < kColumnTiles; j += 2) {
      Right<T, kPlanes> right;
      right.template load<true, false>(factor + k * kStride + warp / 4 * 64 + 8 * j, kStride,
                                       kRank * kStride);
      multiply(acc[j], left, right, 0);
      multiply(acc[j + 1], left, right, 1);
    }
  }
}

__device__ __forceinline__ void put_sums(float* sums, const float (&acc)[kColumnTiles][4]) {
  const int lane = lane_of_warp(), warp = warp_of_block();
#pragma unroll
  for (int j = 0; j < kColumnTiles; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = warp % 4 * 16 + lane / 4 + i / 2 * 8;
      sums[row * kSumStride + warp / 4 * 64 + 8 * j + lane % 4 * 2 + i % 2] = acc[j][i];
    }
  }
}

template <typename T>
__device__ __forceinline__ void finish_tile(const float* sums, const WideMatrix<T>& out,
                                            const ExpandJob<T>& job, std::int64_t t0, std::int64_t w0) {
#pragma unroll 1
  for (int j = 0; j < kRunsPerThread; ++j) {
    const TilePlace place = place_of(j);
    const std::int64_t t = t0 + place.row, w = w0 + place.column;
    if (t >= out.num_tokens || w >= out.num_columns) continue;
    T* const to = out.data + t * out.num_columns + w;
    const bool takes_eight = out.takes_eight(w);
    const int count = w + 8 <= out.num_columns ? 8 : static_cast<int>(out.num_columns - w);
    const std::uint32_t kept = out.mask.is_active ? keep_eight(out.mask, t * out.num_columns + w) : 0xffu;
    float values[8], before[8] = {};
    load8(sums + place.row * kSumStride + place.column, values);
    if (job.accumulates && takes_eight) load8(const_cast<const T*>(to), before);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (job.accumulates && !takes_eight && i < count) before[i] = to_float(to[i]);
      const float bias = job.bias && i < count ? to_float(job.bias[w + i]) : 0.0f;
      values[i] = (kept >> i & 1u ? job.scale * values[i] : 0.0f) + bias + before[i];
    }
    if (takes_eight) {
      store8(to, values);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (i < count) store_rounded(to + i, values[i]);
      }
    }
  }
}

template <typename T, int kRankTiles>
__global__ void __launch_bounds__(kLoraThreads) lora_expand_kernel(WideMatrix<T> out, ExpandJob<T> job) {
  using Shared = ExpandShared<T, kRankTiles>;
  constexpr int kPlanes = num_planes<T>(kPlanesWanted), kRank = 8 * kRankTiles;
  float* const sums = reinterpret_cast<float*>(dynamic_shared());
  T* const factor = reinterpret_cast<T*>(sums + Shared::kSums);
  T* const rows = factor + Shared::kFactor;
  const std::int64_t w0 = static_cast<std::int64_t>(blockIdx.x) * kTileColumns;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.y) * kTileTokens;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.y) * kTileTokens;
  const std::int64_t rank = job.factor.rank;
  for (std::int64_t t0 = first; t0 < out.num_tokens; t0 += stride) {
    float acc[kColumnTiles][4] = {};
    for (std::int64_t r = 0; r < rank; r += kRank) {
      if (t0 == first || rank > kRank) {
        LoraFactor ranks = job.factor;
        ranks.data += r * ranks.rank_stride;
        ranks.rank -= r;
        put_factor<kPlanes, kRank, kTileColumns>(factor, ranks, w0);
      }
      put_rows<kPlanes, kRank>(rows, job.rows + r, rank, rank - r, t0, out.num_tokens);
      __syncthreads();
      add_slice<kRankTiles>(acc, rows, factor);
      __syncthreads();
    }
    put_sums(sums, acc);
    __syncthreads();
    finish_tile(sums, out, job, t0, w0);
  }
}

template <typename T, int kRankTiles>
void launch_ranks(const WideMatrix<T>& out, const ExpandJob<T>& job, const Queue& queue) {
  const std::int64_t num_tiles = (out.num_columns + kTileColumns - 1) / kTileColumns;
  const std::int64_t num_token_tiles = (out.num_tokens + kTileTokens - 1) / kTileTokens;
  constexpr std::int64_t kBlocks = 528;  // four for each multiprocessor of the largest GPUs
  const std::int64_t wanted = num_tiles ? (kBlocks + num_tiles - 1) / num_tiles : 0;
  const std::int64_t num_parts = wanted < num_token_tiles ? wanted : num_token_tiles;
  launch(lora_expand_kernel<T, kRankTiles>,
         {"lora_expand_kernel", dim3(static_cast<unsigned>(num_tiles), static_cast<unsigned>(num_parts)),
          dim3(kLoraThreads), ExpandShared<T, kRankTiles>::kBytes},
         queue, out, job);
}

template <typename T>
void launch_expand(const TensorRef& rows, const LoraFactor& factor, const TensorRef& bias,
                   const TensorRef& out, bool accumulate, const Dropout& dropout, const Queue& queue) {
  const WideMatrix<T> wide = wide_matrix<T>(out, dropout);
  const ExpandJob<T> job{rows.as<const float>(), factor, bias.defined ? bias.as<const T>() : nullptr,
                         accumulate, static_cast<float>(keep_scale(dropout))};
  with_rank_tiles(factor.rank,
                  [&](auto tiles) { launch_ranks<T, decltype(tiles)::value>(wide, job, queue); });
}

}  // namespace

void lora_expand(const LoraExpandArgs& args, std::uintptr_t stream) {
  const auto run = args.y.dtype == DType::kBFloat16 ? launch_expand<__nv_bfloat16> : launch_expand<float>;
  run(args.projected, factor_of(args.lora_B, false), args.bias, args.y, args.accumulate, Dropout{0.0, 0},
      Queue(args.y, stream));
}

void lora_expand_backward(const LoraExpandBackwardArgs& args, std::uintptr_t stream) {
  const auto run =
      args.grad_x.dtype == DType::kBFloat16 ? launch_expand<__nv_bfloat16> : launch_expand<float>;
  run(args.grad_projected, factor_of(args.lora_A, true), TensorRef{}, args.grad_x, args.accumulate,
      args.dropout, Queue(args.grad_x, stream));
}

}  // namespace pyft::cuda
