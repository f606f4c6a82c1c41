// The gradients that sum over tokens, each in one pass over its wide matrix:
//
//     lora_grad     dB = dY^T S [N, R], and beside it dS = scaling * dY B [T, R]
//     lora_grad_A   dA = dS^T drop(x) [R, K]
//
//            panel: 256 columns, or 128 for ranks above 32
//           +------+------+---    block (i, p) of 8 warps: panel i, and of its bands of 64 tokens those
//       64  | tile | tile |       numbered p, p + P, p + 2 P, .. For each band S goes to shared memory; then
//    tokens +------+------+---    one tile after the other goes there and to both products, while the next
//           | ..                  is fetched.
//
//     columns product   the block's own [panel, R], in registers to the end: part p of the sum over tokens
//     rows product      [64, R], finished with the tile's last columns: part i of the sum over columns
//
// The parts go to workspaces, and lora_sum_kernel adds them in order: no atomics, the same bits every time.
// Shared memory, bfloat16: 17 KB for the tile, 9, 15 or 27 KB for S, 25, 50 or 51 KB for B. Sums are float32,
// of products that are exact but for 2^-24. Assumed, and checked in dispatch: shapes, contiguity, the number
// of parts.
#include "cuda/lora_launch.h"
#include "cuda/operations.h"

namespace pyft::cuda {
namespace {

template <typename T, int kRankTiles>
struct GradShared {
  static constexpr int kPanel = static_cast<int>(lora_panel_columns(8 * kRankTiles));
  static constexpr int kTile = kTileTokens * padded<T>(kTileColumns);
  static constexpr int kRows = num_planes<T>(3) * kTileTokens * padded<T>(8 * kRankTiles);
  static constexpr int kFactor = num_planes<T>(3) * 8 * kRankTiles * padded<T>(kPanel);
};

struct GradJob {
  const float* rows;  // S or dS [T, rows_stride], from the slice's first rank on
  std::int64_t rows_stride;
  LoraFactor columns_out;  // the gradient to a factor, with its layout
  std::int64_t columns_part_stride;
  float columns_scale;
  LoraFactor factor;  // of the rows product
  RowsOut rows_out;   // data is null where it is not wanted
};

template <int kRankTiles>
__device__ __forceinline__ void store_columns(const float (&acc)[kRankTiles][4], const GradJob& job,
                                              std::int64_t w0) {
  const LoraFactor& out = job.columns_out;
  float* const part = out.data + blockIdx.y * job.columns_part_stride;
#pragma unroll
  for (int j = 0; j < kRankTiles; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::int64_t w = w0 + 16 * warp_of_block() + lane_of_warp() / 4 + i / 2 * 8;
      const std::int64_t r = 8 * j + lane_of_warp() % 4 * 2 + i % 2;
      if (w < out.num_columns && r < out.rank)
        part[r * out.rank_stride + w * out.column_stride] = job.columns_scale * acc[j][i];
    }
  }
}

template <typename T, int kRankTiles>
__global__ void __launch_bounds__(kLoraThreads, 1) lora_grad_kernel(WideMatrix<const T> wide, GradJob job) {
  using Shared = GradShared<T, kRankTiles>;
  constexpr int kChunks = Shared::kPanel / kTileColumns;
  T* const tile = reinterpret_cast<T*>(dynamic_shared());
  T* const rows = tile + Shared::kTile;
  T* const factor = rows + Shared::kRows;
  const std::int64_t w0 = static_cast<std::int64_t>(blockIdx.x) * Shared::kPanel;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.y) * kTileTokens;
  const bool wants_rows = job.rows_out.data != nullptr;
  if (wants_rows) put_factor<num_planes<T>(3), 8 * kRankTiles, Shared::kPanel>(factor, job.factor, w0);
  float columns_acc[kChunks][kRankTiles][4] = {};
  StagedRun<T> staged[kRunsPerThread];
  std::int64_t t0 = static_cast<std::int64_t>(blockIdx.y) * kTileTokens;
  fetch_tile(staged, wide, t0, w0);
  for (; t0 < wide.num_tokens; t0 += stride) {
    float rows_acc[kRankTiles / 2][4] = {};
    put_rows<num_planes<T>(3), 8 * kRankTiles>(rows, job.rows, job.rows_stride, job.columns_out.rank, t0,
                                               wide.num_tokens);
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      put_tile(tile, staged, wide, t0, w0 + chunk * kTileColumns);
      __syncthreads();
      const bool is_last = chunk + 1 == kChunks;
      fetch_tile(staged, wide, is_last ? t0 + stride : t0, is_last ? w0 : w0 + (chunk + 1) * kTileColumns);
      if (wants_rows) add_rows<kRankTiles, Shared::kPanel>(rows_acc, tile, factor + chunk * kTileColumns);
      add_columns<kRankTiles>(columns_acc[chunk], tile, rows);
      __syncthreads();
    }
    if (wants_rows) store_rows<kRankTiles>(rows_acc, job.rows_out, blockIdx.x, t0, wide.num_tokens);
  }
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk)
    store_columns<kRankTiles>(columns_acc[chunk], job, w0 + chunk * kTileColumns);
}

template <typename T, int kRankTiles>
void launch_grad_slice(const WideMatrix<const T>& wide, const GradJob& job, std::int64_t num_parts,
                       const Queue& queue) {
  using Shared = GradShared<T, kRankTiles>;
  const std::int64_t num_panels = (wide.num_columns + Shared::kPanel - 1) / Shared::kPanel;
  const int shared = Shared::kTile + Shared::kRows + (job.rows_out.data ? Shared::kFactor : 0);
  launch(lora_grad_kernel<T, kRankTiles>,
         {"lora_grad_kernel", dim3(static_cast<unsigned>(num_panels), static_cast<unsigned>(num_parts)),
          dim3(kLoraThreads), sizeof(T) * static_cast<std::size_t>(shared)},
         queue, wide, job);
}

// `job` for all ranks; num_parts of the sum over tokens.
template <typename T>
void launch_grad_slices(const WideMatrix<const T>& wide, const GradJob& job, std::int64_t num_parts,
                        const Queue& queue) {
  const std::int64_t rank = job.columns_out.rank;
  for (std::int64_t r = 0; r < rank; r += kMostRanks) {
    GradJob ranks = job;
    ranks.rows += r;
    ranks.columns_out = slice(job.columns_out, r, kMostRanks);
    if (job.rows_out.data) {
      ranks.factor = slice(job.factor, r, kMostRanks);
      ranks.rows_out.data += r;
      ranks.rows_out.rank = ranks.factor.rank;
    }
    with_rank_tiles(rank, [&](auto tiles) {
      launch_grad_slice<T, decltype(tiles)::value>(wide, ranks, num_parts, queue);
    });
  }
}

// A job without a rows product: `result` is the gradient to lora_A or lora_B.
GradJob columns_job(const TensorRef& rows, const TensorRef& result, bool is_lora_A, const PartsOfSum& parts,
                    double scale) {
  GradJob job{};
  job.rows = rows.as<const float>();
  job.rows_stride = rows.shape[1];
  job.columns_out = factor_of(result, is_lora_A);
  job.columns_out.data = parts.data;
  job.columns_part_stride = parts.part_stride;
  job.columns_scale = static_cast<float>(scale);
  return job;
}

void launch_grad(const TensorRef& wide, const Dropout& dropout, const GradJob& job, std::int64_t num_parts,
                 const Queue& queue) {
  if (wide.dtype == DType::kBFloat16) {
    launch_grad_slices(wide_matrix<const __nv_bfloat16>(wide, dropout), job, num_parts, queue);
  } else {
    launch_grad_slices(wide_matrix<const float>(wide, dropout), job, num_parts, queue);
  }
}

}  // namespace

void lora_grad(const LoraGradArgs& args, std::uintptr_t stream) {
  const Queue queue(args.grad_y, stream);
  const LoraFactor lora_B = factor_of(args.lora_B, false);
  if (!args.grad_B.defined) {
    return launch_lora_project(args.grad_y, lora_B, args.grad_projected, args.row_workspace, args.scaling,
                               Dropout{0.0, 0}, queue);
  }
  const PartsOfSum parts = parts_of(args.column_workspace, args.grad_B);
  GradJob job = columns_job(args.projected, args.grad_B, false, parts, 1.0);
  if (args.grad_projected.defined) {
    const PartsOfSum row_parts = parts_of(args.row_workspace, args.grad_projected);
    job.factor = lora_B;
    job.rows_out = {row_parts.data, lora_B.rank, lora_B.rank, row_parts.part_stride,
                    static_cast<float>(args.scaling)};
  }
  launch_grad(args.grad_y, Dropout{0.0, 0}, job, parts.num_parts, queue);
  launch_lora_sum(args.column_workspace, args.grad_B, queue);
  if (args.grad_projected.defined) launch_lora_sum(args.row_workspace, args.grad_projected, queue);
}

void lora_grad_A(const LoraGradAArgs& args, std::uintptr_t stream) {
  const Queue queue(args.x, stream);
  const PartsOfSum parts = parts_of(args.workspace, args.grad_A);
  const GradJob job = columns_job(args.grad_projected, args.grad_A, true, parts, keep_scale(args.dropout));
  launch_grad(args.x, args.dropout, job, parts.num_parts, queue);
  launch_lora_sum(args.workspace, args.grad_A, queue);
}

}  // namespace pyft::cuda
