// linear_cross_entropy for a large vocabulary and a head that trains, or label smoothing: the loss in one
// pass over the head, all gradients in a second one, when dLoss is known.
//
//     forward, split s of V by one thread, panel after panel of kPanelIds ids:
//         L   = h W_p^T, then LogitTerms             [n, kPanelIds], the first R rows of it kept
//         m, sum of every row                        online, per split; merged in order
//     backward, one group of panels after the other, G [n, S] with n S <= 4 Mi floats (16 MiB):
//         G   = dLoss / d(h W_p^T)                   pieces panel x kRowBlock rows: from kept L, else again
//         dW_p = G_p^T h, db_p = sum of G_p's rows   written once, rounded once
//         dH  += G W                                 tiles, group after group
//
// FLOPs: 2 n V K each for L, dW, dH, and once more for L of the n - R rows that are not kept: 6 for n <= R,
// at most 8. Kept logits are read and written once (8 bytes for 2 K FLOPs), ten times cheaper than the
// product. R <= K rows: what is kept is never more than one float32 gradient of the head, which this does
// without. By chunks of tokens, dW [V, K] would be read and written, and W packed twice, for each of n V / 8
// Mi chunks.
//
// Bytes beside inputs and outputs: R V kept, h and dH [n, K], G: all float32. A piece is the same whoever
// does it and no sum crosses pieces, so the bits do not depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/gemm.h"
#include "cpu/isa.h"
#include "cpu/linear_cross_entropy.h"
#include "cpu/operations.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace pyft {
namespace {

constexpr std::int64_t kPanelIds = 512;
constexpr std::int64_t kRowBlock = 512;
constexpr std::int64_t kNumSplits = 32;
constexpr std::int64_t kGroupFloats = 4 << 20;
constexpr std::int64_t kRowPadding = 16;  // rows of G a power of two apart would share cache lines' places
constexpr std::int64_t kTileRows = 256, kTileColumns = 256;  // of dH
constexpr std::int64_t kHeadTileColumns = 512;               // of dW, kPanelIds high

std::int64_t ceil_div(std::int64_t value, std::int64_t unit) { return (value + unit - 1) / unit; }

}  // namespace

std::int64_t linear_cross_entropy_backward_floats(std::int64_t num_tokens, std::int64_t width) {
  return 2 * num_tokens * width + kGroupFloats + num_tokens * (kPanelIds + kRowPadding);
}

}  // namespace pyft

namespace pyft::cpu {
namespace {

void round_row(const float* from, std::int64_t count, BFloat16Bits* to) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = float_to_bfloat16(from[i]);
}

// What both passes know: the head, the gathered rows, and which of their logits are kept.
struct Problem {
  template <typename Args>
  explicit Problem(const Args& args)
      : width(args.hidden.shape[1]),
        vocabulary(args.head_weight.shape[0]),
        head(dense_view(args.head_weight.data, args.head_weight.dtype, width)),
        transform(args.logits),
        targets(args.targets.template as<const std::int64_t>()),
        rows(find_counted(args.targets, args.ignore_index)),
        count(static_cast<std::int64_t>(rows.size())),
        num_kept(std::min(args.kept_logits.shape[0], count)),
        kept(args.kept_logits.template as<float>()),
        hidden(args.workspace.template as<float>()) {
    gather_hidden(args.hidden, {rows.data(), count}, hidden);
  }

  std::int64_t target(std::int64_t i) const { return targets[rows[static_cast<std::size_t>(i)]]; }

  // Kept logits of row i for the panel at v0, which lies there as [num_kept, num_ids].
  float* kept_row(std::int64_t i, std::int64_t v0, std::int64_t num_ids) const {
    return kept + v0 * num_kept + i * num_ids;
  }

  // Rows are taken in blocks of at most kRowBlock, either all kept or none.
  std::int64_t block_end(std::int64_t begin) const {
    return std::min(begin + kRowBlock, begin < num_kept ? num_kept : count);
  }

  void make_logits(std::int64_t begin, std::int64_t end, std::int64_t v0, std::int64_t num_ids, float* logits,
                   std::int64_t stride) const {
    gemm(end - begin, num_ids, width, dense_view(hidden + begin * width, DType::kFloat32, width),
         transposed(offset_view(head, v0, 0)), logits, stride, false);
    transform.finish(logits, end - begin, v0, num_ids, stride);
  }

  std::int64_t width, vocabulary;
  MatrixView head;
  Logits transform;
  const std::int64_t* targets;     // [T]
  std::vector<std::int64_t> rows;  // which of T count
  std::int64_t count;              // n
  std::int64_t num_kept;
  float* kept;
  float* hidden;  // [n, K]
};

// The forward: states of the rows, split by split.
void run_split(const Problem& problem, const LossTerms& terms, std::int64_t split, RowState* states,
               float* target_logits) {
  const std::int64_t num_ids_each = ceil_div(ceil_div(problem.vocabulary, kPanelIds), kNumSplits) * kPanelIds;
  const std::int64_t last = std::min(problem.vocabulary, (split + 1) * num_ids_each);
  for (std::int64_t v0 = split * num_ids_each; v0 < last; v0 += kPanelIds) {
    const std::int64_t num_ids = std::min(kPanelIds, last - v0);
    for (std::int64_t begin = 0, end; begin < problem.count; begin = end) {
      end = problem.block_end(begin);
      float* logits = begin < problem.num_kept ? problem.kept_row(begin, v0, num_ids)
                                               : scratch_floats(Scratch::kTile, kRowBlock * kPanelIds);
      problem.make_logits(begin, end, v0, num_ids, logits, num_ids);
      for (std::int64_t i = begin; i < end; ++i, logits += num_ids) {
        const std::int64_t position = problem.target(i) - v0;
        if (position >= 0 && position < num_ids) target_logits[i] = logits[position];
        states[i].add(sums_of(logits, num_ids, terms));
      }
    }
  }
}

// The backward of one group of panels: ids [first, last), G [n, stride].
class Group {
 public:
  Group(const LinearCrossEntropyBackwardArgs& args, const Problem& problem, float* grad_hidden, float* group)
      : args_(args), problem_(problem), grad_hidden_(grad_hidden), gradient_(group) {
    const std::int64_t fitting = kGroupFloats / std::max<std::int64_t>(problem.count, 1) / kPanelIds;
    const std::int64_t num_panels = ceil_div(problem.vocabulary, kPanelIds);
    max_ids_ = std::clamp<std::int64_t>(fitting, 1, std::max<std::int64_t>(num_panels, 1)) * kPanelIds;
    stride_ = max_ids_ + kRowPadding;
  }

  void run(int num_threads) {
    for (first_ = 0; first_ < problem_.vocabulary; first_ = last_) {
      last_ = std::min(problem_.vocabulary, first_ + max_ids_);
      const std::int64_t num_panels = ceil_div(last_ - first_, kPanelIds);
      const std::int64_t num_blocks =
          ceil_div(problem_.num_kept, kRowBlock) + ceil_div(problem_.count - problem_.num_kept, kRowBlock);
      parallel_for(num_threads, num_panels * num_blocks, 1, [&](std::int64_t piece, std::int64_t) {
        make_gradient(piece / num_blocks, piece % num_blocks);
      });
      const std::int64_t head_across = ceil_div(problem_.width, kHeadTileColumns);
      const std::int64_t num_head = args_.grad_head.defined ? num_panels * head_across : 0;
      const std::int64_t num_bias = args_.grad_bias.defined ? num_panels : 0;
      const std::int64_t across = ceil_div(problem_.width, kTileColumns);
      const std::int64_t num_hidden =
          args_.grad_hidden.defined ? ceil_div(problem_.count, kTileRows) * across : 0;
      parallel_for(num_threads, num_hidden + num_head + num_bias, 1, [&](std::int64_t piece, std::int64_t) {
        if (piece < num_hidden) {
          add_to_hidden(piece / across * kTileRows, piece % across * kTileColumns);
        } else if (piece < num_hidden + num_head) {
          const std::int64_t tile = piece - num_hidden;
          write_head(first_ + tile / head_across * kPanelIds, tile % head_across * kHeadTileColumns);
        } else {
          write_bias(first_ + (piece - num_hidden - num_head) * kPanelIds);
        }
      });
    }
  }

 private:
  // One panel, one block of rows.
  void make_gradient(std::int64_t panel, std::int64_t block) const {
    const float* stats = args_.row_stats.as<const float>();
    const double grad_loss = *args_.grad_loss.as<const float>();
    const std::int64_t v0 = first_ + panel * kPanelIds, num_ids = std::min(kPanelIds, last_ - v0);
    const std::int64_t kept_blocks = ceil_div(problem_.num_kept, kRowBlock);
    const std::int64_t begin =
        block < kept_blocks ? block * kRowBlock : problem_.num_kept + (block - kept_blocks) * kRowBlock;
    const std::int64_t end = problem_.block_end(begin);
    const bool is_kept = begin < problem_.num_kept;
    float* row = gradient_ + begin * stride_ + (v0 - first_);
    if (!is_kept) problem_.make_logits(begin, end, v0, num_ids, row, stride_);
    for (std::int64_t i = begin; i < end; ++i, row += stride_) {
      const float* row_stats = stats + 2 * problem_.rows[static_cast<std::size_t>(i)];
      const float* logits = is_kept ? problem_.kept_row(i, v0, num_ids) : row;
      write_gradient(logits, {row_stats[0], row_stats[1], 0.0}, problem_.target(i), v0, num_ids,
                     problem_.vocabulary, problem_.transform, args_.terms, grad_loss, row);
    }
  }

  void add_to_hidden(std::int64_t row0, std::int64_t column0) const {
    const std::int64_t num_rows = std::min(kTileRows, problem_.count - row0);
    gemm(num_rows, std::min(kTileColumns, problem_.width - column0), last_ - first_,
         dense_view(gradient_ + row0 * stride_, DType::kFloat32, stride_),
         offset_view(problem_.head, first_, column0), grad_hidden_ + row0 * problem_.width + column0,
         problem_.width, first_ > 0);
  }

  void write_head(std::int64_t v0, std::int64_t column0) const {
    const std::int64_t num_ids = std::min(kPanelIds, last_ - v0), width = problem_.width;
    const std::int64_t num_columns = std::min(kHeadTileColumns, width - column0);
    const bool is_float = args_.grad_head.dtype == DType::kFloat32;
    float* tile = is_float ? args_.grad_head.as<float>() + v0 * width + column0
                           : scratch_floats(Scratch::kTile, kPanelIds * kHeadTileColumns);
    const std::int64_t stride = is_float ? width : num_columns;
    gemm(num_ids, num_columns, problem_.count,
         transposed(dense_view(gradient_ + (v0 - first_), DType::kFloat32, stride_)),
         dense_view(problem_.hidden + column0, DType::kFloat32, width), tile, stride, false);
    if (is_float) return;
    for (std::int64_t v = v0; v < v0 + num_ids; ++v, tile += stride) {
      round_row(tile, num_columns, args_.grad_head.as<BFloat16Bits>() + v * width + column0);
    }
  }

  void write_bias(std::int64_t v0) const {
    const std::int64_t num_ids = std::min(kPanelIds, last_ - v0);
    std::int64_t v = v0;
    for (double sum : sum_of_rows(gradient_ + (v0 - first_), problem_.count, num_ids, stride_)) {
      const float rounded = static_cast<float>(sum);
      if (args_.grad_bias.dtype == DType::kFloat32) {
        args_.grad_bias.as<float>()[v++] = rounded;
      } else {
        args_.grad_bias.as<BFloat16Bits>()[v++] = float_to_bfloat16(rounded);
      }
    }
  }

  const LinearCrossEntropyBackwardArgs& args_;
  const Problem& problem_;
  float* grad_hidden_;  // [n, K]
  float* gradient_;     // G
  std::int64_t max_ids_, stride_;
  std::int64_t first_ = 0, last_ = 0;
};

}  // namespace

void linear_cross_entropy_forward(const LinearCrossEntropyForwardArgs& args, int num_threads) {
  const Problem problem(args);
  std::vector<RowState> states(static_cast<std::size_t>(kNumSplits * problem.count));
  std::vector<float> target_logits(static_cast<std::size_t>(problem.count));
  parallel_for(num_threads, kNumSplits, 1, [&](std::int64_t split, std::int64_t) {
    run_split(problem, args.terms, split, states.data() + split * problem.count, target_logits.data());
  });
  float* stats = args.row_stats.as<float>();
  std::memset(stats, 0, static_cast<std::size_t>(2 * args.row_stats.shape[0]) * sizeof(float));
  double loss = 0.0;
  for (std::int64_t i = 0; i < problem.count; ++i) {
    const RowState state = merged_state(states.data(), kNumSplits, problem.count, i);
    float* row_stats = stats + 2 * problem.rows[static_cast<std::size_t>(i)];
    row_stats[0] = state.max;
    row_stats[1] = static_cast<float>(state.sum);
    loss += loss_of_row(args.terms, state, target_logits[static_cast<std::size_t>(i)], problem.vocabulary);
  }
  *args.loss.as<float>() = static_cast<float>(loss);
}

void linear_cross_entropy_backward(const LinearCrossEntropyBackwardArgs& args, int num_threads) {
  const std::int64_t num_tokens = args.hidden.shape[0], width = args.hidden.shape[1];
  const Problem problem(args);
  float* grad_hidden = problem.hidden + problem.count * width;
  Group(args, problem, grad_hidden, grad_hidden + problem.count * width).run(num_threads);
  if (!args.grad_hidden.defined) return;
  const std::int64_t row_bytes = width * dtype_bytes(args.hidden.dtype);
  std::memset(args.grad_hidden.data, 0, static_cast<std::size_t>(num_tokens * row_bytes));
  for (std::int64_t i = 0; i < problem.count; ++i) {
    const float* from = grad_hidden + i * width;
    const std::int64_t row = problem.rows[static_cast<std::size_t>(i)];
    if (args.hidden.dtype == DType::kFloat32) {
      std::memcpy(args.grad_hidden.as<float>() + row * width, from, static_cast<std::size_t>(row_bytes));
    } else {
      round_row(from, width, args.grad_hidden.as<BFloat16Bits>() + row * width);
    }
  }
}

}  // namespace pyft::cpu
