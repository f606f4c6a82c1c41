// nf4_linear and its gradient to x for few tokens, T <= 64, in bfloat16: W is read once, as codes, and
// dequantised in registers into the 16-row operand of mma.sync, so that tokens are padded to 8 only.
//
//     forward    y^T  [N, T] = W   [N, K] x^T  [K, T]          A = rows of W,       summed over K
//     backward   dX^T [K, T] = W^T [K, N] dY^T [N, T]          A = columns of W,    summed over N
//
// Blocks have contiguous ranges of units, each a step of the sum of one tile of the output (nf4_small.h draws
// them); where a tile is shared, nf4_small_sums_kernel adds the parts in order: no atomics, the same bits
// every time. A unit is 8192 weights, of which each of the 8 warps takes 32 rows by 64 columns:
//
//     forward    128 x 128   group = warp % 4: which 32 rows       half = warp / 4: which half of the columns
//     backward    64 x 256   group = warp % 4: which 64 columns    half = warp / 4: which half of the rows
//
// Units pass through a ring of stages in shared memory: codes, each thread's absmax, and x or dY. A thread
// copies into a stage when all warps have read what it held (`empty`), and a warp reads when the copies of
// all threads have come (`full`), so warps may run apart by as much as the ring holds.
//
// The order of the summed index within a step is free as long as A and B agree, so it is chosen such that a
// lane (g = lane / 4, t = lane % 4) reads whole words:
//
//                A: the codes that a lane reads                                   B
//     forward    rows g, g+8, g+16, g+24, 8 bytes each: k = 16t .. 16t+15         the same k of x
//     backward   rows n = 8t .. 8t+7, 4 bytes each: columns 8g .. 8g+7            the same n of dY
//                in tile j of four, mma row g is column 8g + 2j and row g+8 is column 8g + 2j + 1
//
// Pieces of 16 bytes of a stage are swapped by the row that they belong to, so that the lanes that read
// together read from different banks. A byte of codes is looked up as a pair of floats,
// code_pairs[byte][lane % 16]. Values are rounded once to bfloat16, as bitsandbytes does. Assumed, and
// checked by check_small: bfloat16, K % 64 == 0, backward N % 8 == 0, aligned pointers.
#include "cuda/device/nf4_small.h"
#include "cuda/device/nf4_small_finish.h"
#include "cuda/nf4_small_arguments.h"
#include "cuda/operations.h"

namespace pyft::cuda {
namespace {

// ---- one unit: 32 rows by 64 columns of W a warp ----------------------------------------------------------

// Columns of the output that a warp makes, in tiles of 16: 32 rows of W forward, 64 columns backward.
template <bool kBackward>
constexpr int kRowTiles = kBackward ? 4 : 2;

template <int kTiles>
__device__ __forceinline__ void multiply_forward(float (&acc)[kTiles][2][4],
                                                 const Stage<false, kTiles>& stage, const float2* code_pairs,
                                                 float absmax) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int g = lane / 4, t = lane % 4, group = warp % 4, half = warp / 4;
  float scale[4];
#pragma unroll
  for (int q = 0; q < 4; ++q) scale[q] = __shfl_sync(kAllLanes, absmax, 8 * q + g);
  // With 64 tokens the sums leave no registers for both turns at once.
#pragma unroll(kTiles == 8 ? 1 : 2)
  for (int i = 0; i < 2; ++i) {
    std::uint32_t a[2][2][4];
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const std::uint32_t word = *reinterpret_cast<const std::uint32_t*>(
          stage.code(32 * group + 8 * q + g, 2 * half + t / 2) + t % 2 * 8 + 4 * i);
#pragma unroll
      for (int byte = 0; byte < 4; ++byte) {
        const float2 pair = look_up(code_pairs, word, byte);
        a[q / 2][byte / 2][q % 2 + byte % 2 * 2] =
            pack_bf16(__fmul_rn(pair.x, scale[q]), __fmul_rn(pair.y, scale[q]));
      }
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const uint4 x = *stage.in(8 * tile + g, 8 * half + 2 * t + i);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        mma_bf16(acc[tile][m], a[m][0], {x.x, x.y});
        mma_bf16(acc[tile][m], a[m][1], {x.z, x.w});
      }
    }
  }
}

template <int kTiles>
__device__ __forceinline__ void multiply_backward(float (&acc)[kTiles][4][4],
                                                  const Stage<true, kTiles>& stage, const float2* code_pairs,
                                                  float absmax) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int g = lane / 4, t = lane % 4, group = warp % 4, half = warp / 4;
#pragma unroll(kTiles >= 4 ? 1 : 2)
  for (int s = 0; s < 2; ++s) {
    uint2 grad[kTiles];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
      grad[tile] = reinterpret_cast<const uint2*>(stage.in(8 * tile + g, 4 * half + t))[s];
    std::uint32_t codes[4];
    float scale[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = 8 * t + 4 * s + i;
      codes[i] =
          *reinterpret_cast<const std::uint32_t*>(stage.code(32 * half + row, 2 * group + g / 4) + g % 4 * 4);
      scale[i] = __shfl_sync(kAllLanes, absmax, row);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      std::uint32_t a[4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float2 even = look_up(code_pairs, codes[2 * i], j),
                     odd = look_up(code_pairs, codes[2 * i + 1], j);
        a[2 * i] = pack_bf16(__fmul_rn(even.x, scale[2 * i]), __fmul_rn(odd.x, scale[2 * i + 1]));
        a[2 * i + 1] = pack_bf16(__fmul_rn(even.y, scale[2 * i]), __fmul_rn(odd.y, scale[2 * i + 1]));
      }
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) mma_bf16(acc[tile][j], a, {grad[tile].x, grad[tile].y});
    }
  }
}

// ---- the end of a tile ------------------------------------------------------------------------------------

// Adds the halves of the warps' sums and stores them, or leaves them to the second kernel.
template <bool kBackward, int kTiles>
__device__ __forceinline__ void end_tile(const SmallGemm& gemm, float (&acc)[kTiles][kRowTiles<kBackward>][4],
                                         float* exchange, int tile, bool is_whole) {
  using Outputs = Finish<kBackward>;
  constexpr int kPitch = Outputs::kTile + 4;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int g = lane / 4, t = lane % 4, group = warp % 4, half = warp / 4;
#pragma unroll
  for (int tokens = 0; tokens < kTiles; ++tokens) {
#pragma unroll
    for (int m = 0; m < kRowTiles<kBackward>; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = kBackward ? 64 * group + 8 * g + 2 * m + i / 2 : 32 * group + 16 * m + g + i / 2 * 8;
        exchange[(8 * half + 2 * t + i % 2) * kPitch + row] = acc[tokens][m][i];
        acc[tokens][m][i] = 0.0f;
      }
    }
    __syncthreads();
#pragma unroll 1
    for (int pass = 0; pass < Outputs::kPasses; ++pass) {
      const Outputs outputs(8 * tokens, pass);
      float sums[Outputs::kCount];
#pragma unroll
      for (int i = 0; i < Outputs::kCount; ++i) {
        const float* const from =
            exchange + (outputs.token - 8 * tokens + i * Outputs::kStride) * kPitch + outputs.row;
        sums[i] = from[0] + from[8 * kPitch];
      }
      if (is_whole) {
        outputs.store(gemm, tile, sums);
      } else {
        float* const partials = partial_sums(gemm, static_cast<int>(blockIdx.x), tile);
#pragma unroll
        for (int i = 0; i < Outputs::kCount; ++i) {
          const int token = outputs.token + i * Outputs::kStride;
          if (token < gemm.num_tokens) partials[token * gemm.tile + outputs.row] = sums[i];
        }
      }
    }
    __syncthreads();
  }
}

// ---- the kernels ------------------------------------------------------------------------------------------

template <bool kBackward, int kTiles>
__global__ void __launch_bounds__(kNf4SmallThreads, nf4_small_blocks_per_multiprocessor(kTiles))
    nf4_linear_small_kernel(const __grid_constant__ SmallGemm gemm,
                            const __grid_constant__ Nf4Codebook codebook,
                            const __grid_constant__ DynamicMap dynamic_map) {
  constexpr int kStages = nf4_small_stages(kTiles);
  unsigned char* shared = dynamic_shared();
  float2* const code_pairs = reinterpret_cast<float2*>(shared);
  float* const absmax_map = reinterpret_cast<float*>(shared += kNf4SmallPairTableBytes);
  float* const exchange = reinterpret_cast<float*>(shared += kNf4SmallMapBytes);
  Barrier* const full = reinterpret_cast<Barrier*>(shared += nf4_small_sums_bytes(kBackward));
  Barrier* const empty = full + kStages;
  unsigned char* const stages = shared + kNf4SmallBarrierBytes;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kStages) {
    barrier_init(full + thread, kNf4SmallThreads);
    barrier_init(empty + thread, kNf4SmallThreads / 32);
  }
  __syncthreads();

  const std::int64_t first = nf4_small_first_unit(blockIdx.x, gemm.num_units, gemm.num_blocks);
  const int count =
      static_cast<int>(nf4_small_first_unit(blockIdx.x + 1, gemm.num_units, gemm.num_blocks) - first);
  Unit next{static_cast<int>(first / gemm.num_steps), static_cast<int>(first % gemm.num_steps)};
  Unit unit = next;
  // Brings the n-th unit of this block.
  const auto fetch = [&](int n) {
    if (n >= count) return;
    barrier_wait(empty + n % kStages, (n / kStages + 1) % 2);
    copy_unit(Stage<kBackward, kTiles>(stages, n % kStages), gemm, next);
    barrier_arrive_after_copies(full + n % kStages);
    next.advance(gemm.num_steps);
  };
#pragma unroll 1
  for (int n = 0; n < kStages - 1; ++n) fetch(n);
  fill_tables(code_pairs, absmax_map, codebook, dynamic_map);
  __syncthreads();

  float acc[kTiles][kRowTiles<kBackward>][4] = {};
  bool is_whole = unit.step == 0;  // all of the tile so far is this block's
  for (int n = 0; n < count; ++n) {
    fetch(n + kStages - 1);
    const Stage<kBackward, kTiles> stage(stages, n % kStages);
    barrier_wait(full + n % kStages, n / kStages % 2);
    const float absmax = own_absmax(stage, gemm, absmax_map, unit);
    if constexpr (kBackward) {
      multiply_backward(acc, stage, code_pairs + thread % 16, absmax);
    } else {
      multiply_forward(acc, stage, code_pairs + thread % 16, absmax);
    }
    __syncwarp();
    if (thread % 32 == 0) barrier_arrive(empty + n % kStages);
    const bool is_end = unit.step + 1 == gemm.num_steps;
    if (is_end || n + 1 == count)
      end_tile<kBackward, kTiles>(gemm, acc, exchange, unit.tile, is_whole && is_end);
    is_whole = is_whole || is_end;
    unit.advance(gemm.num_steps);
  }
}

// The sums of the tiles that blocks share, in order of the blocks; one block here to a tile and 8 tokens.
template <bool kBackward>
__global__ void __launch_bounds__(kNf4SmallThreads)
    nf4_small_sums_kernel(const __grid_constant__ SmallGemm gemm) {
  const int tile = static_cast<int>(blockIdx.x);
  const std::int64_t first_unit = static_cast<std::int64_t>(tile) * gemm.num_steps;
  const int first = nf4_small_block_of(first_unit, gemm.num_units, gemm.num_blocks);
  const int last = nf4_small_block_of(first_unit + gemm.num_steps - 1, gemm.num_units, gemm.num_blocks);
  if (first == last) return;
  using Outputs = Finish<kBackward>;
  for (int pass = 0; pass < Outputs::kPasses; ++pass) {
    const Outputs outputs(static_cast<int>(blockIdx.y) * 8, pass);
    float sums[Outputs::kCount] = {};
    for (int block = first; block <= last; ++block) {
      const float* const partials = partial_sums(gemm, block, tile);
#pragma unroll
      for (int i = 0; i < Outputs::kCount; ++i) {
        const int token = outputs.token + i * Outputs::kStride;
        if (token < gemm.num_tokens) sums[i] += partials[token * gemm.tile + outputs.row];
      }
    }
    outputs.store(gemm, tile, sums);
  }
}

template <bool kBackward>
void launch_small(const char* op, SmallGemm gemm, const Nf4Partition& partition, const Queue& queue) {
  using Kernel = void (*)(SmallGemm, Nf4Codebook, DynamicMap);
  const Kernel kernels[] = {nf4_linear_small_kernel<kBackward, 1>, nf4_linear_small_kernel<kBackward, 2>,
                            nf4_linear_small_kernel<kBackward, 4>, nf4_linear_small_kernel<kBackward, 8>};
  const int kind = gemm.num_tokens <= 8 ? 0 : gemm.num_tokens <= 16 ? 1 : gemm.num_tokens <= 32 ? 2 : 3;
  gemm.tile = nf4_small_tile(kBackward);
  const int num_tiles = (gemm.num_outputs + gemm.tile - 1) / gemm.tile;
  gemm.num_steps = (gemm.num_summed + nf4_small_step(kBackward) - 1) / nf4_small_step(kBackward);
  gemm.num_units = static_cast<std::int64_t>(num_tiles) * gemm.num_steps;
  gemm.num_blocks = partition.num_blocks;
  const bool is_shared = check_partition(op, gemm, partition);
  if (is_shared) gemm.partials = partition.workspace.as<float>();
  const std::size_t shared_bytes = static_cast<std::size_t>(nf4_small_shared_bytes(kBackward, 1 << kind));
  launch(kernels[kind],
         {"nf4_linear_small_kernel", dim3(static_cast<unsigned>(gemm.num_blocks)), dim3(kNf4SmallThreads),
          shared_bytes},
         queue, gemm, nf4_codebook(), kDynamicMap);
  if (!is_shared) return;
  const unsigned token_groups = static_cast<unsigned>((gemm.num_tokens + 7) / 8);
  launch(nf4_small_sums_kernel<kBackward>,
         {"nf4_small_sums_kernel", dim3(static_cast<unsigned>(num_tiles), token_groups),
          dim3(kNf4SmallThreads), 0},
         queue, gemm);
}

}  // namespace

void nf4_linear(const Nf4LinearArgs& args, std::uintptr_t stream) {
  check_small("nf4_linear", args.x, args.weight, args.addend, 1);
  const SmallGemm gemm = small_gemm(args.weight, args.x, args.y, args.bias, args.addend);
  launch_small<false>("nf4_linear", gemm, args.partition, Queue(args.y, stream));
}

void nf4_linear_backward(const Nf4LinearBackwardArgs& args, std::uintptr_t stream) {
  check_small("nf4_linear_backward", args.grad_y, args.weight, args.addend, 8);
  const SmallGemm gemm = small_gemm(args.weight, args.grad_y, args.grad_x, TensorRef(), args.addend);
  launch_small<true>("nf4_linear_backward", gemm, args.partition, Queue(args.grad_x, stream));
}

}  // namespace pyft::cuda
