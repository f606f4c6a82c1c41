// lora_linear and its backward, on a dense or an NF4 base.
//
//     S  = scaling * drop(x) A^T                 [T, R], computed again in the backward
//     y  = x W^T + S B^T + bias                  [T, N]
//     dS = scaling * dY B                        [T, R]
//     dX = dY W + drop'(dS A)                    [T, K]
//     dA = dS^T drop(x),  dB = dY^T S            [R, K], [N, R]
//
// Every output is cut into tiles that one thread computes from start to end, base product and low-rank part
// into the same float32 accumulators, rounded once:
//
//                  kTileColumns
//                +------+------+---
//    kTileTokens | tile |      |         y:  gemm(x rows, W rows) + gemm(S rows, B rows) + bias
//                +------+------+---      dX: gemm(dY rows, W columns) + [factors *] gemm(dS rows, A columns)
//                |      |      |         dA (columns of K), dB (rows of N): sums over all tokens, in order
//
// No sum crosses threads, so the bits do not depend on their number. Dropout's factors are computed where
// they are needed, never stored. Assumed and checked in dispatch: shapes, dtypes, contiguity.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/gemm.h"
#include "cpu/isa.h"
#include "cpu/operations.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/weight_panel.h"

namespace pyft::cpu {
namespace {

constexpr std::int64_t kTileTokens = 384;
constexpr std::int64_t kTileColumns = 256;
// Pieces of S and dS, and of dB: one and two of gemm's blocks of rows, so that few of its tiles are cut.
constexpr std::int64_t kProjectTokens = 132;
constexpr std::int64_t kGradientRows = 264;
// Of dropped x held at one time: [kDropTokens, kTileColumns] for dA, [kProjectTokens, kDropColumns] for S.
constexpr std::int64_t kDropTokens = 256;
constexpr std::int64_t kDropColumns = 512;

WeightPanel base_panel(const LoraBase& base, DType compute_dtype) {
  if (base.dense.defined) return WeightPanel(base.dense);
  return WeightPanel(base.nf4, compute_dtype);
}

MatrixView view_of(const TensorRef& matrix) { return dense_view(matrix.data, matrix.dtype, matrix.shape[1]); }

// Dropout of one call: entry (t, k) of a [T, num_columns] matrix.
class Factors {
 public:
  Factors(const Dropout& dropout, std::int64_t num_columns)
      : seed_(dropout.seed),
        threshold_(static_cast<std::uint32_t>(
            std::min(std::nearbyint(dropout.probability * 4294967296.0), 4294967295.0))),
        keep_scale_(static_cast<float>(1.0 / (1.0 - dropout.probability))),
        num_columns_(num_columns),
        active_(dropout.probability > 0.0) {}

  bool active() const { return active_; }

  // Factors of columns [k0, k1) of row t.
  void fill(std::int64_t t, std::int64_t k0, std::int64_t k1, float* factors) const {
    kernels().dropout_factors(seed_, t * num_columns_ + k0, k1 - k0, threshold_, keep_scale_, factors);
  }

  // tile [t1 - t0, k1 - k0] = factors * x.
  void drop(const TensorRef& x, std::int64_t t0, std::int64_t t1, std::int64_t k0, std::int64_t k1,
            float* tile) const {
    for (std::int64_t t = t0; t < t1; ++t, tile += k1 - k0) {
      fill(t, k0, k1, tile);
      const std::int64_t first = t * num_columns_ + k0;
      if (x.dtype == DType::kBFloat16) {
        const BFloat16Bits* row = x.as<const BFloat16Bits>() + first;
        for (std::int64_t k = 0; k < k1 - k0; ++k) tile[k] *= bfloat16_to_float(row[k]);
      } else {
        const float* row = x.as<const float>() + first;
        for (std::int64_t k = 0; k < k1 - k0; ++k) tile[k] *= row[k];
      }
    }
  }

 private:
  std::uint64_t seed_;
  std::uint32_t threshold_;
  float keep_scale_;
  std::int64_t num_columns_;
  bool active_;
};

void scale(float* values, std::int64_t count, double factor) {
  const float scaling = static_cast<float>(factor);
  for (std::int64_t i = 0; i < count; ++i) values[i] *= scaling;
}

// S = scaling * drop(x) A^T.
void project(const TensorRef& x, const TensorRef& lora_A, const Factors& factors, double scaling,
             float* projected, int num_threads) {
  const std::int64_t num_tokens = x.shape[0], width = x.shape[1], rank = lora_A.shape[0];
  const MatrixView a = view_of(lora_A);
  parallel_for(num_threads, num_tokens, kProjectTokens, [&](std::int64_t t0, std::int64_t t1) {
    float* out = projected + t0 * rank;
    if (!factors.active()) {
      gemm(t1 - t0, rank, width, offset_view(view_of(x), t0, 0), transposed(a), out, rank, false);
    } else {
      for (std::int64_t k0 = 0; k0 < width; k0 += kDropColumns) {
        const std::int64_t k1 = std::min(width, k0 + kDropColumns);
        float* dropped = scratch_floats(Scratch::kTile, kProjectTokens * kDropColumns);
        factors.drop(x, t0, t1, k0, k1, dropped);
        gemm(t1 - t0, rank, k1 - k0, dense_view(dropped, DType::kFloat32, k1 - k0),
             transposed(offset_view(a, 0, k0)), out, rank, k0 > 0);
      }
    }
    scale(out, (t1 - t0) * rank, scaling);
  });
}

// A float32 tile of an output matrix: the output itself where that is float32, else scratch that is rounded
// into it.
class OutputTile {
 public:
  OutputTile(const TensorRef& matrix, std::int64_t t0, std::int64_t t1, std::int64_t c0, std::int64_t c1)
      : num_rows_(t1 - t0), num_columns_(c1 - c0), row_stride_(matrix.shape[1]) {
    const std::int64_t first = t0 * row_stride_ + c0;
    if (matrix.dtype == DType::kFloat32) {
      floats_ = matrix.as<float>() + first;
      tile_stride_ = row_stride_;
    } else {
      rounded_ = matrix.as<BFloat16Bits>() + first;
      floats_ = scratch_floats(Scratch::kTile, kTileTokens * kTileColumns);
      tile_stride_ = num_columns_;
    }
  }

  float* floats() const { return floats_; }
  float* row(std::int64_t t) const { return floats_ + t * tile_stride_; }
  std::int64_t stride() const { return tile_stride_; }

  void finish() const {
    if (!rounded_) return;
    for (std::int64_t t = 0; t < num_rows_; ++t) {
      const float* from = row(t);
      BFloat16Bits* to = rounded_ + t * row_stride_;
      for (std::int64_t c = 0; c < num_columns_; ++c) to[c] = float_to_bfloat16(from[c]);
    }
  }

 private:
  std::int64_t num_rows_, num_columns_, row_stride_;
  std::int64_t tile_stride_ = 0;
  float* floats_ = nullptr;
  BFloat16Bits* rounded_ = nullptr;
};

// Calls body(t0, t1, c0, c1) for every tile of a [num_tokens, num_columns] matrix. Tiles of the same columns
// follow each other, so that they find the weight's part in the cache.
template <typename Body>
void for_each_tile(int num_threads, std::int64_t num_tokens, std::int64_t num_columns, const Body& body) {
  const std::int64_t tiles_down = (num_tokens + kTileTokens - 1) / kTileTokens;
  const std::int64_t tiles_across = (num_columns + kTileColumns - 1) / kTileColumns;
  parallel_for(num_threads, tiles_down * tiles_across, 1, [&](std::int64_t tile, std::int64_t) {
    const std::int64_t t0 = tile % tiles_down * kTileTokens, c0 = tile / tiles_down * kTileColumns;
    body(t0, std::min(num_tokens, t0 + kTileTokens), c0, std::min(num_columns, c0 + kTileColumns));
  });
}

void add_bias(const TensorRef& bias, std::int64_t c0, std::int64_t c1, std::int64_t num_rows,
              const OutputTile& tile) {
  if (!bias.defined) return;
  for (std::int64_t t = 0; t < num_rows; ++t) {
    float* row = tile.row(t);
    for (std::int64_t c = c0; c < c1; ++c) {
      row[c - c0] += bias.dtype == DType::kBFloat16 ? bfloat16_to_float(bias.as<const BFloat16Bits>()[c])
                                                    : bias.as<const float>()[c];
    }
  }
}

// dX = dY W + drop'(dS A).
void backward_x(const LoraLinearBackwardArgs& args, const Factors& factors, int num_threads) {
  const std::int64_t num_tokens = args.x.shape[0], width = args.x.shape[1], rank = args.lora_A.shape[0];
  const std::int64_t out_features = args.grad_y.shape[1];
  const WeightPanel weight = base_panel(args.weight, args.x.dtype);
  const MatrixView grad_y = view_of(args.grad_y), grad_projected = view_of(args.grad_projected);
  for_each_tile(num_threads, num_tokens, width,
                [&](std::int64_t t0, std::int64_t t1, std::int64_t k0, std::int64_t k1) {
                  const OutputTile tile(args.grad_x, t0, t1, k0, k1);
                  gemm(t1 - t0, k1 - k0, out_features, offset_view(grad_y, t0, 0),
                       offset_view(weight.view(), 0, k0), tile.floats(), tile.stride(), false);
                  const MatrixView ds = offset_view(grad_projected, t0, 0),
                                   a = offset_view(view_of(args.lora_A), 0, k0);
                  if (!factors.active()) {
                    gemm(t1 - t0, k1 - k0, rank, ds, a, tile.floats(), tile.stride(), true);
                  } else {
                    float* addition = scratch_floats(Scratch::kTileOther, (kTileTokens + 1) * kTileColumns);
                    float* row_factors = addition + kTileTokens * kTileColumns;
                    gemm(t1 - t0, k1 - k0, rank, ds, a, addition, kTileColumns, false);
                    for (std::int64_t t = t0; t < t1; ++t, addition += kTileColumns) {
                      factors.fill(t, k0, k1, row_factors);
                      float* row = tile.row(t - t0);
                      for (std::int64_t k = 0; k < k1 - k0; ++k) row[k] += row_factors[k] * addition[k];
                    }
                  }
                  tile.finish();
                });
}

// dA = dS^T drop(x).
void backward_A(const LoraLinearBackwardArgs& args, const Factors& factors, int num_threads) {
  const std::int64_t num_tokens = args.x.shape[0], width = args.x.shape[1], rank = args.lora_A.shape[0];
  const MatrixView grad_projected = view_of(args.grad_projected);
  parallel_for(num_threads, width, kTileColumns, [&](std::int64_t k0, std::int64_t k1) {
    float* out = args.grad_A.as<float>() + k0;
    if (!factors.active() || num_tokens == 0) {  // a product over no tokens gives zeros
      gemm(rank, k1 - k0, num_tokens, transposed(grad_projected), offset_view(view_of(args.x), 0, k0), out,
           width, false);
      return;
    }
    for (std::int64_t t0 = 0; t0 < num_tokens; t0 += kDropTokens) {
      const std::int64_t t1 = std::min(num_tokens, t0 + kDropTokens);
      float* dropped = scratch_floats(Scratch::kTile, kDropTokens * kTileColumns);
      factors.drop(args.x, t0, t1, k0, k1, dropped);
      gemm(rank, k1 - k0, t1 - t0, transposed(offset_view(grad_projected, t0, 0)),
           dense_view(dropped, DType::kFloat32, k1 - k0), out, width, t0 > 0);
    }
  });
}

}  // namespace

void lora_linear(const LoraLinearArgs& args, int num_threads) {
  const std::int64_t num_tokens = args.x.shape[0], width = args.x.shape[1], rank = args.lora_A.shape[0];
  const std::int64_t out_features = args.y.shape[1];
  const WeightPanel weight = base_panel(args.weight, args.x.dtype);
  project(args.x, args.lora_A, Factors(args.dropout, width), args.scaling, args.projected.as<float>(),
          num_threads);
  for_each_tile(num_threads, num_tokens, out_features,
                [&](std::int64_t t0, std::int64_t t1, std::int64_t n0, std::int64_t n1) {
                  const OutputTile tile(args.y, t0, t1, n0, n1);
                  gemm(t1 - t0, n1 - n0, width, offset_view(view_of(args.x), t0, 0),
                       transposed(offset_view(weight.view(), n0, 0)), tile.floats(), tile.stride(), false);
                  gemm(t1 - t0, n1 - n0, rank, offset_view(view_of(args.projected), t0, 0),
                       transposed(offset_view(view_of(args.lora_B), n0, 0)), tile.floats(), tile.stride(),
                       true);
                  add_bias(args.bias, n0, n1, t1 - t0, tile);
                  tile.finish();
                });
}

void lora_linear_backward(const LoraLinearBackwardArgs& args, int num_threads) {
  const std::int64_t num_tokens = args.x.shape[0], width = args.x.shape[1], rank = args.lora_A.shape[0];
  const std::int64_t out_features = args.grad_y.shape[1];
  const Factors factors(args.dropout, width);
  const MatrixView grad_y = view_of(args.grad_y);
  if (args.grad_x.defined || args.grad_A.defined) {
    parallel_for(num_threads, num_tokens, kProjectTokens, [&](std::int64_t t0, std::int64_t t1) {
      float* out = args.grad_projected.as<float>() + t0 * rank;
      gemm(t1 - t0, rank, out_features, offset_view(grad_y, t0, 0), view_of(args.lora_B), out, rank, false);
      scale(out, (t1 - t0) * rank, args.scaling);
    });
  }
  if (args.grad_x.defined) backward_x(args, factors, num_threads);
  if (args.grad_A.defined) backward_A(args, factors, num_threads);
  if (args.grad_B.defined) {
    project(args.x, args.lora_A, factors, args.scaling, args.projected.as<float>(), num_threads);
    parallel_for(num_threads, out_features, kGradientRows, [&](std::int64_t n0, std::int64_t n1) {
      gemm(n1 - n0, rank, num_tokens, transposed(offset_view(grad_y, 0, n0)), view_of(args.projected),
           args.grad_B.as<float>() + n0 * rank, rank, false);
    });
  }
}

}  // namespace pyft::cpu
