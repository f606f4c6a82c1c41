// nf4_linear and its gradient to x for few tokens, T <= 64, in bfloat16: W is read once, as codes, and
// dequantised in registers into the 16-row operand of mma.sync, so that tokens are padded to 8 only.
//
//     forward    y^T  [N, T] = W   [N, K] x^T  [K, T]          A = 16 rows of W,       summed over K
//     backward   dX^T [K, T] = W^T [K, N] dY^T [N, T]          A = 64 columns of W,    summed over N
//
// A block owns one tile of the output: 16 features (forward) or 64 columns (backward) by all tokens. Its 8
// warps take steps of the sum in turn; their sums meet in shared memory and are added in order of the warps.
// Where the tiles are too few for the GPU, gridDim.y blocks share the steps of a tile and leave partial sums,
// which nf4_sum_splits_kernel adds in order: no atomics, the same bits every time.
//
// The order of the summed index within a step is free as long as A and B agree, so it is chosen such that a
// lane (g = lane / 4, t = lane % 4) loads whole words:
//
//     forward, a step of 64 k   A: rows g, g+8: 8 bytes of codes each, k = 16t .. 16t+15
//                               B: token g:     32 bytes of x, the same k
//     backward, a step of 16 n  A: rows n = 4t .. 4t+3: 4 bytes of codes each, k = 8g .. 8g+7; in tile j of
//     four,
//                                  mma row g is k = 8g + 2j and row g+8 is k = 8g + 2j + 1: one byte of codes
//                               B: token g:     8 bytes of dY, the same n
//
// A lane looks codes up in its own bank: table[code][lane], 2 KB. Values are rounded once to bfloat16, as
// bitsandbytes does. Shared memory: 8 warps x tile x 8 kTiles floats, at most 32 KB forward and, in two
// rounds, backward. Assumed, and checked by check_small: K % 64 == 0, N % 4 == 0, aligned pointers.
#include "cuda/device/memory.h"
#include "cuda/device/mma.h"
#include "cuda/device/nf4.h"
#include "cuda/operations.h"

namespace pyft::cuda {
namespace {

constexpr int kMostTokens = 64;
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kForwardRows = 16;
constexpr int kForwardStep = 64;
constexpr int kBackwardColumns = 64;
constexpr int kBackwardStep = 16;

// What both directions are given. `in` is [T, inner], `out` [T, outer]; partials [gridDim.y, T, outer] or
// null.
struct SmallGemm {
  Nf4Source weight;
  const __nv_bfloat16* in;
  const __nv_bfloat16* bias;  // [outer], or null
  __nv_bfloat16* out;
  float* partials;
  std::int64_t num_tokens, outer, inner;
};

struct LookUp {
  const float* table;  // of this lane: entry of a code at [32 * code]
  float absmax;

  // Nibble `index` of a word of codes as it lies in memory: even elements are the high ones.
  __device__ __forceinline__ float operator()(std::uint32_t word, int index) const {
    const std::uint32_t code = word >> (8 * (index / 2) + (index % 2 ? 0 : 4)) & 15u;
    return __fmul_rn(table[32 * code], absmax);
  }
};

__device__ __forceinline__ void fill_table(float* table, const Nf4Codebook& codebook) {
  for (int i = static_cast<int>(threadIdx.x); i < 16 * 32; i += kThreads) table[i] = codebook.data[i / 32];
}

__device__ __forceinline__ void fill_map(float* map, const DynamicMap& from) {
  map[threadIdx.x] = from.data[threadIdx.x];
}

// Element (row of the tile, token) of a tile: the sum over the warps, in their order.
__device__ __forceinline__ void finish(const SmallGemm& gemm, const float* sums, int tile_rows,
                                       int num_tokens, std::int64_t first_row, std::int64_t first_token) {
  for (int i = static_cast<int>(threadIdx.x); i < tile_rows * num_tokens; i += kThreads) {
    const std::int64_t row = first_row + i % tile_rows, token = first_token + i / tile_rows;
    if (row >= gemm.outer || token >= gemm.num_tokens) continue;
    float sum = 0.0f;
    for (int warp = 0; warp < kWarps; ++warp) sum += sums[warp * tile_rows * num_tokens + i];
    if (gemm.partials) {
      gemm.partials[(blockIdx.y * gemm.num_tokens + token) * gemm.outer + row] = sum;
    } else {
      if (gemm.bias) sum += to_float(gemm.bias[row]);
      gemm.out[token * gemm.outer + row] = __float2bfloat16_rn(sum);
    }
  }
}

// Steps are dealt in turn to the warps of the blocks that share a tile.
__device__ __forceinline__ std::int64_t first_step() { return blockIdx.y * kWarps + threadIdx.x / 32; }
__device__ __forceinline__ std::int64_t step_stride() {
  return static_cast<std::int64_t>(gridDim.y) * kWarps;
}

template <int kTiles>
__global__ void __launch_bounds__(kThreads)
    nf4_linear_small_kernel(SmallGemm gemm, Nf4Codebook codebook, DynamicMap map_of_codes) {
  PYFT_SHARED(float, table, 16 * 32);
  PYFT_SHARED(float, map, 256);
  PYFT_SHARED(float, sums, kWarps * kForwardRows * 8 * kTiles);
  fill_table(table, codebook);
  fill_map(map, map_of_codes);
  __syncthreads();

  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const std::int64_t row0 = static_cast<std::int64_t>(blockIdx.x) * kForwardRows;
  float acc[kTiles][4] = {};
  for (std::int64_t step = first_step(); step < gemm.inner / kForwardStep; step += step_stride()) {
    const std::int64_t k = step * kForwardStep + 16 * t;
    uint2 codes[2];
    LookUp look_up[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      std::int64_t row = row0 + g + 8 * half;
      if (row >= gemm.outer) row = gemm.outer - 1;  // beyond the end: computed, never stored
      const std::int64_t at = row * gemm.inner + k;
      codes[half] = *reinterpret_cast<const uint2*>(gemm.weight.codes + at / 2);
      look_up[half] = {table + lane, block_absmax(gemm.weight, map, at / kNf4BlockSize)};
    }
    std::uint32_t a[4][4];
#pragma unroll
    for (int s = 0; s < 4; ++s) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::uint32_t word = s < 2 ? codes[half].x : codes[half].y;
        const int n = s % 2 * 4;
        a[s][half] = pack_bf16(look_up[half](word, n), look_up[half](word, n + 1));
        a[s][half + 2] = pack_bf16(look_up[half](word, n + 2), look_up[half](word, n + 3));
      }
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const std::int64_t token = 8 * tile + g;
      uint4 x[2] = {make_uint4(0, 0, 0, 0), make_uint4(0, 0, 0, 0)};
      if (token < gemm.num_tokens) {
        const uint4* const from = reinterpret_cast<const uint4*>(gemm.in + token * gemm.inner + k);
        x[0] = from[0], x[1] = from[1];
      }
      const std::uint32_t b[4][2] = {{x[0].x, x[0].y}, {x[0].z, x[0].w}, {x[1].x, x[1].y}, {x[1].z, x[1].w}};
#pragma unroll
      for (int s = 0; s < 4; ++s) mma_bf16(acc[tile], a[s], b[s]);
    }
  }
  float* const own = sums + threadIdx.x / 32 * kForwardRows * 8 * kTiles;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) own[(8 * tile + 2 * t + i % 2) * kForwardRows + g + i / 2 * 8] = acc[tile][i];
  }
  __syncthreads();
  finish(gemm, sums, kForwardRows, 8 * kTiles, row0, 0);
}

template <int kTiles>
__global__ void __launch_bounds__(kThreads)
    nf4_linear_backward_small_kernel(SmallGemm gemm, Nf4Codebook codebook, DynamicMap map_of_codes) {
  constexpr int kRowTiles = kBackwardColumns / 16;
  PYFT_SHARED(float, table, 16 * 32);
  PYFT_SHARED(float, map, 256);
  PYFT_SHARED(float, sums, kWarps * kBackwardColumns * 8);
  fill_table(table, codebook);
  fill_map(map, map_of_codes);
  __syncthreads();

  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const std::int64_t column0 = static_cast<std::int64_t>(blockIdx.x) * kBackwardColumns;
  float acc[kTiles][kRowTiles][4] = {};
  for (std::int64_t step = first_step(); step * kBackwardStep < gemm.inner; step += step_stride()) {
    const std::int64_t n = step * kBackwardStep + 4 * t;
    const bool exists = n < gemm.inner;  // all four rows or none, as inner % 4 == 0
    std::uint32_t codes[4] = {};
    LookUp look_up[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::int64_t at = (n + i) * gemm.outer + column0 + 8 * g;
      if (exists) codes[i] = *reinterpret_cast<const std::uint32_t*>(gemm.weight.codes + at / 2);
      look_up[i] = {table + lane, exists ? block_absmax(gemm.weight, map, at / kNf4BlockSize) : 0.0f};
    }
    std::uint32_t b[kTiles][2];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const std::int64_t token = 8 * tile + g;
      uint2 grad = make_uint2(0, 0);
      if (exists && token < gemm.num_tokens)
        grad = *reinterpret_cast<const uint2*>(gemm.in + token * gemm.inner + n);
      b[tile][0] = grad.x, b[tile][1] = grad.y;
    }
#pragma unroll
    for (int j = 0; j < kRowTiles; ++j) {
      std::uint32_t a[4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int k = 2 * j + half;
        a[half] = pack_bf16(look_up[0](codes[0], k), look_up[1](codes[1], k));
        a[half + 2] = pack_bf16(look_up[2](codes[2], k), look_up[3](codes[3], k));
      }
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) mma_bf16(acc[tile][j], a, b[tile]);
    }
  }
  float* const own = sums + threadIdx.x / 32 * kBackwardColumns * 8;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int j = 0; j < kRowTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        own[(2 * t + i % 2) * kBackwardColumns + 8 * g + 2 * j + i / 2] = acc[tile][j][i];
    }
    __syncthreads();
    finish(gemm, sums, kBackwardColumns, 8, column0, 8 * tile);
    __syncthreads();
  }
}

// out = bias + the sum of the partial sums, in order of the splits.
__global__ void nf4_sum_splits_kernel(SmallGemm gemm, int num_splits) {
  const std::int64_t count = gemm.num_tokens * gemm.outer;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  float sum = 0.0f;
  for (int split = 0; split < num_splits; ++split) sum += gemm.partials[split * count + i];
  if (gemm.bias) sum += to_float(gemm.bias[i % gemm.outer]);
  gemm.out[i] = __float2bfloat16_rn(sum);
}

using Kernel = void (*)(SmallGemm, Nf4Codebook, DynamicMap);

Kernel choose_kernel(bool is_backward, std::int64_t num_tokens) {
  if (num_tokens <= 8) return is_backward ? nf4_linear_backward_small_kernel<1> : nf4_linear_small_kernel<1>;
  if (num_tokens <= 16) return is_backward ? nf4_linear_backward_small_kernel<2> : nf4_linear_small_kernel<2>;
  if (num_tokens <= 32) return is_backward ? nf4_linear_backward_small_kernel<4> : nf4_linear_small_kernel<4>;
  return is_backward ? nf4_linear_backward_small_kernel<8> : nf4_linear_small_kernel<8>;
}

void launch_small(const SmallGemm& gemm, bool is_backward, const TensorRef& workspace, const Queue& queue) {
  const std::int64_t num_splits = workspace.defined ? workspace.shape[0] : 1;
  const int tile = is_backward ? kBackwardColumns : kForwardRows;
  const std::int64_t num_tiles = (gemm.outer + tile - 1) / tile;
  launch(choose_kernel(is_backward, gemm.num_tokens),
         {is_backward ? "nf4_linear_backward_small_kernel" : "nf4_linear_small_kernel",
          dim3(static_cast<unsigned>(num_tiles), static_cast<unsigned>(num_splits)), dim3(kThreads), 0},
         queue, gemm, nf4_codebook(), kDynamicMap);
  if (!gemm.partials) return;
  constexpr int kSumThreads = 256;
  const std::int64_t num_blocks = (gemm.num_tokens * gemm.outer + kSumThreads - 1) / kSumThreads;
  launch(nf4_sum_splits_kernel,
         {"nf4_sum_splits_kernel", dim3(static_cast<unsigned>(num_blocks)), dim3(kSumThreads), 0}, queue,
         gemm, static_cast<int>(num_splits));
}

void check_small(const char* op, const TensorRef& in, const Nf4Tensors& weight) {
  check(in.dtype == DType::kBFloat16 && in.shape[0] <= kMostTokens, op, ": ", in.name, " is ",
        dtype_name(in.dtype), " ", shape_text(in), ", on cuda this takes bfloat16 with at most ", kMostTokens,
        " tokens");
  check(weight.num_columns % kNf4BlockSize == 0 && weight.num_rows % 4 == 0, op, ": weight is [",
        weight.num_rows, ", ", weight.num_columns, "], on cuda the sizes must be multiples of 4 and ",
        kNf4BlockSize);
  check(is_aligned(in.data, 16) && is_aligned(weight.codes.data, 8), op, ": ", in.name,
        " and codes must begin at multiples of 16 bytes");
}

}  // namespace

void nf4_linear(const Nf4LinearArgs& args, std::uintptr_t stream) {
  check_small("nf4_linear", args.x, args.weight);
  const SmallGemm gemm{nf4_source(args.weight),
                       args.x.as<const __nv_bfloat16>(),
                       args.bias.defined ? args.bias.as<const __nv_bfloat16>() : nullptr,
                       args.y.as<__nv_bfloat16>(),
                       args.workspace.defined ? args.workspace.as<float>() : nullptr,
                       args.x.shape[0],
                       args.weight.num_rows,
                       args.weight.num_columns};
  launch_small(gemm, false, args.workspace, Queue(args.y, stream));
}

void nf4_linear_backward(const Nf4LinearBackwardArgs& args, std::uintptr_t stream) {
  check_small("nf4_linear_backward", args.grad_y, args.weight);
  const SmallGemm gemm{nf4_source(args.weight),
                       args.grad_y.as<const __nv_bfloat16>(),
                       nullptr,
                       args.grad_x.as<__nv_bfloat16>(),
                       args.workspace.defined ? args.workspace.as<float>() : nullptr,
                       args.grad_y.shape[0],
                       args.weight.num_columns,
                       args.weight.num_rows};
  launch_small(gemm, true, args.workspace, Queue(args.grad_x, stream));
}

}  // namespace pyft::cuda
