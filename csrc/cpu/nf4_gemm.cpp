// nf4_linear and its gradient to x on the CPU:
//
//     y  [T, N] = x [T, K] W^T + bias        dX [T, K] = dY [T, N] W        W [N, K] in NF4
//
// Threads share the output tiles, kTileTokens x tile_features each; gemm dequantises the part of W a tile
// needs into its packed panels (at most 256 KB a thread), so there is never a dequantised copy of W. W is
// dequantised once for every kTileTokens tokens. An element of the output is summed over the whole of K (or
// N) by one thread, in one order.
#include <algorithm>
#include <cstdint>

#include "cpu/gemm.h"
#include "cpu/operations.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/weight_panel.h"

namespace pyft::cpu {
namespace {

constexpr std::int64_t kTileTokens = 384;
constexpr std::int64_t kManyTokens = 128;

// Every tile packs its tokens again, so wide tiles for many tokens; for few, tiles enough to share out
// evenly. Whole blocks of 64 keep to gemm's fast way through NF4.
std::int64_t tile_features(std::int64_t num_tokens, std::int64_t num_features) {
  if (num_tokens > kManyTokens) return 256;
  return num_features > 2048 ? 128 : 64;
}

// One tile of the output, in float32, becomes y: bias added, rounded to y's dtype.
void store_tile(const float* tile, std::int64_t num_tokens, std::int64_t num_features, const TensorRef& bias,
                std::int64_t first_feature, const TensorRef& y, std::int64_t first_token) {
  const std::int64_t width = y.shape[1];
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    const float* from = tile + t * num_features;
    const std::int64_t start = (first_token + t) * width + first_feature;
    if (y.dtype == DType::kBFloat16) {
      BFloat16Bits* to = y.as<BFloat16Bits>() + start;
      if (bias.defined) {
        const BFloat16Bits* add = bias.as<const BFloat16Bits>() + first_feature;
        for (std::int64_t i = 0; i < num_features; ++i)
          to[i] = float_to_bfloat16(from[i] + bfloat16_to_float(add[i]));
      } else {
        for (std::int64_t i = 0; i < num_features; ++i) to[i] = float_to_bfloat16(from[i]);
      }
    } else {
      float* to = y.as<float>() + start;
      if (bias.defined) {
        const float* add = bias.as<const float>() + first_feature;
        for (std::int64_t i = 0; i < num_features; ++i) to[i] = from[i] + add[i];
      } else {
        for (std::int64_t i = 0; i < num_features; ++i) to[i] = from[i];
      }
    }
  }
}

// out [T, F] = in [T, I] B [I, F] + bias, tile by tile.
void product(const TensorRef& in, const MatrixView& b, const TensorRef& bias, const TensorRef& out,
             int num_threads) {
  const std::int64_t num_tokens = out.shape[0], num_features = out.shape[1], num_inner = in.shape[1];
  const MatrixView a = dense_view(in.data, in.dtype, num_inner);
  const std::int64_t width = tile_features(num_tokens, num_features);
  const std::int64_t tiles_across = (num_features + width - 1) / width;
  const std::int64_t tiles_down = (num_tokens + kTileTokens - 1) / kTileTokens;
  parallel_for(num_threads, tiles_across * tiles_down, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t index = begin; index < end; ++index) {
      const std::int64_t t0 = index % tiles_down * kTileTokens, f0 = index / tiles_down * width;
      const std::int64_t tokens = std::min(kTileTokens, num_tokens - t0);
      const std::int64_t features = std::min(width, num_features - f0);
      float* tile = scratch_floats(Scratch::kTile, tokens * features);
      gemm(tokens, features, num_inner, offset_view(a, t0, 0), offset_view(b, 0, f0), tile, features, false);
      store_tile(tile, tokens, features, bias, f0, out, t0);
    }
  });
}

}  // namespace

void nf4_linear(const Nf4LinearArgs& args, int num_threads) {
  const WeightPanel weight(args.weight, args.x.dtype);
  product(args.x, transposed(weight.view()), args.bias, args.y, num_threads);
}

void nf4_linear_backward(const Nf4LinearBackwardArgs& args, int num_threads) {
  const WeightPanel weight(args.weight, args.grad_y.dtype);
  product(args.grad_y, weight.view(), TensorRef{}, args.grad_x, num_threads);
}

}  // namespace pyft::cpu
