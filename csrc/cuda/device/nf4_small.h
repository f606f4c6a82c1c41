// The parts of nf4_gemm_small.cu that move data: what a launch is given, a stage of its ring in shared
// memory, and how a unit of the weight comes into it.
#pragma once

#include "cuda/device/async_copy.h"
#include "cuda/device/barrier.h"
#include "cuda/device/memory.h"
#include "cuda/device/mma.h"
#include "cuda/device/nf4.h"
#include "cuda/device/warp.h"
#include "pyft/nf4_small.h"

namespace pyft::cuda {

// What both directions are given. `in` is [T, num_summed], `out` [T, num_outputs].
struct SmallGemm {
  Nf4Source weight;
  int num_rows, num_columns;  // of the weight
  const __nv_bfloat16* in;
  __nv_bfloat16* out;
  const __nv_bfloat16* bias;  // [num_outputs], or null
  const float* projected;     // [T, rank]
  const float* adapter;       // forward [num_outputs, rank], backward [rank, num_outputs]
  int rank;                   // 0: nothing to add
  float* partials;
  int num_outputs, num_summed, num_tokens;  // per token: N and K forward, K and N backward
  std::int64_t num_units;
  int num_steps, num_blocks, tile;
};

// A unit: a step of the sum of a tile.
struct Unit {
  int tile, step;
  __device__ __forceinline__ void advance(int num_steps) {
    if (++step < num_steps) return;
    step = 0;
    ++tile;
  }
};

// codes [rows][columns / 2], one word each of absmax and nested absmax for every thread, then in [T][step];
// pieces of 16 bytes lie where the lanes that read together find them in different banks.
template <bool kBackward, int kTiles>
struct Stage {
  static constexpr int kRows = nf4_small_rows(kBackward), kColumns = nf4_small_columns(kBackward);
  static constexpr int kStep = nf4_small_step(kBackward);
  unsigned char* base;

  __device__ __forceinline__ Stage(unsigned char* stages, int index)
      : base(stages + index * nf4_small_stage_bytes(kBackward, kTiles)) {}
  __device__ __forceinline__ unsigned char* code(int row, int piece) const {
    const int swapped = kBackward ? piece ^ (row / 8 % 4) << 1 : piece ^ (row / 2 % 2) << 1;
    return base + row * (kColumns / 2) + swapped * 16;
  }
  __device__ __forceinline__ std::uint32_t* scale(int thread) const {
    return reinterpret_cast<std::uint32_t*>(base + kNf4SmallCodeBytes) + thread;
  }
  __device__ __forceinline__ std::uint32_t* nested(int thread) const { return scale(256 + thread); }
  __device__ __forceinline__ uint4* in(int token, int piece) const {
    const int swapped = kBackward ? piece ^ (token % 2) << 2 : piece ^ token % 2;
    return reinterpret_cast<uint4*>(base + kNf4SmallCodeBytes + kNf4SmallScaleBytes) + token * (kStep / 8) +
           swapped;
  }
};

// The block of 64 weights whose absmax this thread brings for its warp, lane l that of the warp's row l; -1
// where the weight has ended.
template <bool kBackward>
__device__ __forceinline__ std::int64_t own_block(const SmallGemm& gemm, const Unit& unit) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int group = warp % 4, half = warp / 4;
  const int row = kBackward ? unit.step * nf4_small_rows(true) + 32 * half + lane
                            : unit.tile * nf4_small_rows(false) + 32 * group + lane;
  const int column_block = kBackward ? unit.tile * (nf4_small_columns(true) / kNf4BlockSize) + group
                                     : unit.step * (nf4_small_columns(false) / kNf4BlockSize) + half;
  const int row_blocks = static_cast<int>(gemm.num_columns) / kNf4BlockSize;
  return row < gemm.num_rows && column_block < row_blocks
             ? static_cast<std::int64_t>(row) * row_blocks + column_block
             : -1;
}

// Begins the copies of a unit, this thread's share of them. What lies outside becomes zero.
template <bool kBackward, int kTiles>
__device__ __forceinline__ void copy_unit(const Stage<kBackward, kTiles>& stage, const SmallGemm& gemm,
                                          const Unit& unit) {
  using S = Stage<kBackward, kTiles>;
  const int thread = static_cast<int>(threadIdx.x);
  const int first_row = (kBackward ? unit.step : unit.tile) * S::kRows;
  const int first_column = (kBackward ? unit.tile : unit.step) * S::kColumns;
  constexpr int kRowPieces = S::kColumns / 32;
  constexpr int kUnrolled = kBackward && kTiles == 4 ? 1 : 2;  // one after the other: registers
#pragma unroll(kUnrolled)
  for (int i = 0; i < kNf4SmallCodeBytes / 16 / 256; ++i) {
    const int row = (thread + 256 * i) / kRowPieces, piece = (thread + 256 * i) % kRowPieces;
    const std::int64_t at =
        static_cast<std::int64_t>(first_row + row) * gemm.num_columns + first_column + 32 * piece;
    const bool exists = first_row + row < gemm.num_rows && first_column + 32 * piece < gemm.num_columns;
    copy_async16(stage.code(row, piece), gemm.weight.codes + (exists ? at / 2 : 0), exists ? 16 : 0);
  }
  const std::int64_t block = own_block<kBackward>(gemm, unit);
  const bool exists = block >= 0;
  if (gemm.weight.absmax) {
    copy_async4(stage.scale(thread), gemm.weight.absmax + (exists ? block : 0), exists ? 4 : 0);
  } else {
    // The word that has the byte; the last may be short.
    const std::int64_t num_blocks =
        static_cast<std::int64_t>(gemm.num_rows) * (gemm.num_columns / kNf4BlockSize);
    const std::int64_t word = exists ? block & ~std::int64_t{3} : 0;
    const int bytes = num_blocks - word < 4 ? static_cast<int>(num_blocks - word) : 4;
    copy_async4(stage.scale(thread), gemm.weight.absmax_codes + word, exists ? bytes : 0);
    copy_async4(stage.nested(thread), gemm.weight.nested_absmax + word / kNestedBlockSize, exists ? 4 : 0);
  }
  constexpr int kTokenPieces = S::kStep / 8, kPieces = 8 * kTiles * kTokenPieces;
  const int first_summed = unit.step * S::kStep;
#pragma unroll
  for (int i = 0; i < (kPieces + 255) / 256; ++i) {
    const int index = thread + 256 * i, token = index / kTokenPieces, piece = index % kTokenPieces;
    if (kPieces % 256 && index >= kPieces) break;
    const bool is_in = token < gemm.num_tokens && first_summed + 8 * piece < gemm.num_summed;
    const std::int64_t at = static_cast<std::int64_t>(token) * gemm.num_summed + first_summed + 8 * piece;
    copy_async16(stage.in(token, piece), gemm.in + (is_in ? at : 0), is_in ? 16 : 0);
  }
}

// What own_block brought, decoded as block_absmax does; 0 where the weight has ended.
template <bool kBackward, int kTiles>
__device__ __forceinline__ float own_absmax(const Stage<kBackward, kTiles>& stage, const SmallGemm& gemm,
                                            const float* absmax_map, const Unit& unit) {
  const int thread = static_cast<int>(threadIdx.x);
  const std::uint32_t word = *stage.scale(thread);
  if (gemm.weight.absmax) return __uint_as_float(word);
  const std::int64_t block = own_block<kBackward>(gemm, unit);
  if (block < 0) return 0.0f;
  const std::uint32_t code = word >> (8 * (block & 3)) & 255u;
  return __fadd_rn(__fmul_rn(absmax_map[code], __uint_as_float(*stage.nested(thread))), *gemm.weight.offset);
}

__device__ __forceinline__ void fill_tables(float2* code_pairs, float* absmax_map,
                                            const Nf4Codebook& codebook, const DynamicMap& dynamic_map) {
  for (int i = static_cast<int>(threadIdx.x); i < 256 * 16; i += 256) {
    const int byte = i / 16;
    code_pairs[i] =
        make_float2(codebook.data[byte / 16], codebook.data[byte % 16]);  // the high nibble comes first
  }
  absmax_map[threadIdx.x] = dynamic_map.data[threadIdx.x];
}

// The two values of byte `index` of a word of codes; `code_pairs` is that of the lane.
__device__ __forceinline__ float2 look_up(const float2* code_pairs, std::uint32_t word, int index) {
  // Bytes of the offset, as an entry has 16 columns of 8.
  const std::uint32_t offset = (index ? word >> (8 * index - 7) : word << 7) & 0x7f80u;
  return *reinterpret_cast<const float2*>(reinterpret_cast<const unsigned char*>(code_pairs) + offset);
}

}  // namespace pyft::cuda
