// The projection of a LoRA layer, S = scaling * drop(x) A^T [T, R]; and dS = scaling * dY B where dB is not
// wanted.
//
//            128 columns of x
//           +-------+-------+---
//       64  | p     | p + 1 |       block (i, p) of 8 warps: tokens 64 i .. 64 i + 63, and of the steps of
//    tokens +-------+-------+---    128 columns those numbered p, p + P, p + 2 P, ..
//
//     a step     the tile of x, fetched into registers during the step before, goes to shared memory without
//                what dropout drops, and the same columns of A beside it, as three planes of bfloat16; then
//                the product of its rows
//     the end    this part of the sum is scaled and written; lora_sum_kernel adds the parts in order
//
// x is read once. 1 / (1 - p) of dropout is part of the scale. Shared memory, bfloat16: 17 KB of x and 13, 26
// or 52 KB of A. Sums are float32, of products that are exact but for 2^-24. Assumed and checked in dispatch:
// shapes, contiguity.
#include "cuda/lora_launch.h"
#include "cuda/operations.h"

namespace pyft::cuda {
namespace {

template <typename T, int kRankTiles>
struct ProjectShared {
  static constexpr int kTile = kTileTokens * padded<T>(kTileColumns);
  static constexpr int kFactor = num_planes<T>(3) * 8 * kRankTiles * padded<T>(kTileColumns);
  static constexpr std::size_t kBytes = sizeof(T) * (kTile + kFactor);
};

template <typename T, int kRankTiles>
__global__ void __launch_bounds__(kLoraThreads)
    lora_project_kernel(WideMatrix<const T> wide, LoraFactor factor, RowsOut out) {
  T* const tile = reinterpret_cast<T*>(dynamic_shared());
  T* const planes = tile + ProjectShared<T, kRankTiles>::kTile;
  const std::int64_t t0 = static_cast<std::int64_t>(blockIdx.x) * kTileTokens;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.y) * kTileColumns;
  float acc[kRankTiles / 2][4] = {};
  StagedRun<T> staged[kRunsPerThread];
  std::int64_t w0 = static_cast<std::int64_t>(blockIdx.y) * kTileColumns;
  fetch_tile(staged, wide, t0, w0);
  for (; w0 < wide.num_columns; w0 += stride) {
    put_tile(tile, staged, wide, t0, w0);
    put_factor<num_planes<T>(3), 8 * kRankTiles, kTileColumns>(planes, factor, w0);
    __syncthreads();
    fetch_tile(staged, wide, t0, w0 + stride);
    add_rows<kRankTiles, kTileColumns>(acc, tile, planes);
    __syncthreads();
  }
  store_rows<kRankTiles>(acc, out, blockIdx.y, t0, wide.num_tokens);
}

__global__ void __launch_bounds__(kLoraThreads)
    lora_sum_kernel(const float* parts, std::int64_t num_parts, std::int64_t count, float* result) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kLoraThreads + threadIdx.x;
  if (i >= count) return;
  float sum = 0.0f;
#pragma unroll 4
  for (std::int64_t part = 0; part < num_parts; ++part) sum += parts[part * count + i];
  result[i] = sum;
}

template <typename T, int kRankTiles>
void launch_project_slice(const WideMatrix<const T>& wide, const LoraFactor& factor, const RowsOut& out,
                          std::int64_t num_parts, const Queue& queue) {
  const std::int64_t num_tiles = (wide.num_tokens + kTileTokens - 1) / kTileTokens;
  launch(lora_project_kernel<T, kRankTiles>,
         {"lora_project_kernel", dim3(static_cast<unsigned>(num_tiles), static_cast<unsigned>(num_parts)),
          dim3(kLoraThreads), ProjectShared<T, kRankTiles>::kBytes},
         queue, wide, factor, out);
}

template <typename T>
void launch_project(const TensorRef& x, const LoraFactor& factor, const TensorRef& result,
                    const TensorRef& workspace, double scaling, const Dropout& dropout, const Queue& queue) {
  const WideMatrix<const T> wide = wide_matrix<const T>(x, dropout);
  const PartsOfSum parts = parts_of(workspace, result);
  const float scale = static_cast<float>(scaling * keep_scale(dropout));
  for (std::int64_t r = 0; r < factor.rank; r += kMostRanks) {
    const LoraFactor ranks = slice(factor, r, kMostRanks);
    const RowsOut out{parts.data + r, factor.rank, ranks.rank, parts.part_stride, scale};
    with_rank_tiles(factor.rank, [&](auto tiles) {
      launch_project_slice<T, decltype(tiles)::value>(wide, ranks, out, parts.num_parts, queue);
    });
  }
  launch_lora_sum(workspace, result, queue);
}

}  // namespace

void launch_lora_sum(const TensorRef& workspace, const TensorRef& result, const Queue& queue) {
  if (!workspace.defined) return;
  const std::int64_t count = result.num_elements();
  const std::int64_t num_blocks = (count + kLoraThreads - 1) / kLoraThreads;
  launch(lora_sum_kernel, {"lora_sum_kernel", dim3(static_cast<unsigned>(num_blocks)), dim3(kLoraThreads), 0},
         queue, workspace.as<const float>(), workspace.shape[0], count, result.as<float>());
}

void launch_lora_project(const TensorRef& wide, const LoraFactor& factor, const TensorRef& result,
                         const TensorRef& workspace, double scaling, const Dropout& dropout,
                         const Queue& queue) {
  if (wide.dtype == DType::kBFloat16) {
    launch_project<__nv_bfloat16>(wide, factor, result, workspace, scaling, dropout, queue);
  } else {
    launch_project<float>(wide, factor, result, workspace, scaling, dropout, queue);
  }
}

void lora_project(const LoraProjectArgs& args, std::uintptr_t stream) {
  launch_lora_project(args.x, factor_of(args.lora_A, true), args.projected, args.workspace, args.scaling,
                      args.dropout, Queue(args.x, stream));
}

}  // namespace pyft::cuda
