// How a product of few tokens with an NF4 weight is cut up for CUDA (cuda/nf4_gemm_small.cu): a pure function
// of the shape and the GPU's size, so that Python can allocate what it needs and a test can print it.
//
// The work is a row of units, tile after tile, each one step of the sum of one tile of the output; every
// block gets as many of them as the next, in one piece, wherever tiles begin and end:
//
//     units    | tile 0: 0 1 2 3 4 | tile 1: 0 1 2 3 4 | tile 2: 0 1 2 3 4 |     5 steps to a tile
//     blocks   |   block 0    |     block 1     |     block 2     |block 3 |     3 or 4 units to a block
//
// A tile that one block has to itself is finished by it. Of any other, each block that has a part leaves its
// sum in the workspace, at [block, whether it holds the end of its tile, token, row of the tile], and a
// second kernel adds these in order.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define PYFT_HOST_DEVICE __host__ __device__
#else
#define PYFT_HOST_DEVICE
#endif

namespace pyft {

struct Nf4SmallShape {
  bool is_backward;
  std::int64_t num_tokens, num_rows, num_columns;  // T, N, K
};

struct Nf4SmallConfig {
  int token_tiles;  // of 8 tokens: 1, 2, 4 or 8
  int tile;         // outputs of a token that a block makes at a time
  int step;         // how far a unit goes along the sum
  int num_stages;   // units on their way through shared memory
  int shared_bytes;
  std::int64_t num_tiles, num_steps;  // units: their product
  int num_blocks;
  std::int64_t workspace_floats;  // 0 where every block has whole tiles
};

constexpr int kNf4SmallMostTokens = 64;
constexpr int kNf4SmallThreads = 256;

// Both kernels see a unit as 8192 weights, 128 x 128 forward and 64 x 256 backward.
PYFT_HOST_DEVICE constexpr int nf4_small_rows(bool is_backward) { return is_backward ? 64 : 128; }
PYFT_HOST_DEVICE constexpr int nf4_small_columns(bool is_backward) { return is_backward ? 256 : 128; }
PYFT_HOST_DEVICE constexpr int nf4_small_tile(bool is_backward) {
  return is_backward ? nf4_small_columns(true) : nf4_small_rows(false);
}
PYFT_HOST_DEVICE constexpr int nf4_small_step(bool is_backward) {
  return is_backward ? nf4_small_rows(true) : nf4_small_columns(false);
}
constexpr int kNf4SmallCodeBytes = 64 * 256 / 2;
constexpr int kNf4SmallScaleBytes = 2 * 256 * 4;

// Shared memory: what a stage holds, and what there is once.
PYFT_HOST_DEVICE constexpr int nf4_small_stage_bytes(bool is_backward, int token_tiles) {
  return kNf4SmallCodeBytes + kNf4SmallScaleBytes + 8 * token_tiles * nf4_small_step(is_backward) * 2;
}
constexpr int kNf4SmallPairTableBytes = 256 * 16 * 8;
constexpr int kNf4SmallMapBytes = 256 * 4;
PYFT_HOST_DEVICE constexpr int nf4_small_sums_bytes(bool is_backward) {
  return 2 * 8 * (nf4_small_tile(is_backward) + 4) * 4;
}
constexpr int kNf4SmallBarrierBytes = 64;

// Two blocks to a multiprocessor, but for the registers that 64 tokens' sums take.
PYFT_HOST_DEVICE constexpr int nf4_small_blocks_per_multiprocessor(int token_tiles) {
  return token_tiles == 8 ? 1 : 2;
}

// As many as 99 KB hold, which every GPU gives a block, up to four.
PYFT_HOST_DEVICE constexpr int nf4_small_stages(int token_tiles) {
  return token_tiles <= 2 ? 4 : token_tiles == 4 ? 3 : 2;
}
PYFT_HOST_DEVICE constexpr int nf4_small_shared_bytes(bool is_backward, int token_tiles) {
  return kNf4SmallPairTableBytes + kNf4SmallMapBytes + nf4_small_sums_bytes(is_backward) +
         kNf4SmallBarrierBytes +
         nf4_small_stages(token_tiles) * nf4_small_stage_bytes(is_backward, token_tiles);
}

// The first unit of a block.
PYFT_HOST_DEVICE constexpr std::int64_t nf4_small_first_unit(std::int64_t block, std::int64_t num_units,
                                                             int num_blocks) {
  return block * num_units / num_blocks;
}
// The block that has a unit.
PYFT_HOST_DEVICE constexpr int nf4_small_block_of(std::int64_t unit, std::int64_t num_units, int num_blocks) {
  return static_cast<int>(((unit + 1) * num_blocks - 1) / num_units);
}

Nf4SmallConfig choose_nf4_small(const Nf4SmallShape& shape, int num_multiprocessors);

}  // namespace pyft
