// linear_cross_entropy for a frozen head and a large vocabulary: one pass over the head, logits for one panel
// of kPanelIds vocabulary entries at a time, as attention does with its keys.
//
//     split s of V, one thread:             for each panel of W in it, while it is in the cache:
//     +--------+--------+--------+--          L  = h W_p^T, then LogitTerms         [C, kPanelIds]
//     | panel  | panel  | panel  |            m' = max(m, max L),  sum = sum exp(m - m') + sum exp(L - m')
//     +--------+--------+--------+--          dH = dH exp(m - m') + exp(L - m') W_p  [C, K]
//
//     then, row by row:  loss = log(sum) + m - L[target],   dH = sum_s dH_s exp(m_s - m) / sum - W[target]
//
// A soft cap multiplies each exp(L - m') and W[target] by its slope 1 - (L / c)^2; scale and z-loss multiply
// dH at the end, when a row's log-sum-exp is known.
//
// dH is rescaled only in the panels where a row's maximum grows, some ln(number of panels) times. Each split
// has its own m, sum and dH; they are merged in order, and their number depends on the shape alone, so the
// bits do not depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/gemm.h"
#include "cpu/isa.h"
#include "cpu/linear_cross_entropy.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace pyft::cpu {
namespace {

constexpr std::int64_t kPanelIds = 256;

class Panels {
 public:
  Panels(const LinearCrossEntropyArgs& args, const LinearCrossEntropyPlan& plan, const CountedRows& counted)
      : args_(args),
        counted_(counted),
        num_splits_(plan.num_splits),
        width_(args.hidden.shape[1]),
        vocabulary_(args.head_weight.shape[0]),
        head_(dense_view(args.head_weight.data, args.head_weight.dtype, width_)),
        transform_(args.logits),
        hidden_(args.workspace.as<float>()),
        partials_(hidden_ + plan.chunk_tokens * width_),
        states_(static_cast<std::size_t>(num_splits_ * counted.count)),
        target_logits_(static_cast<std::size_t>(counted.count)) {
    gather_hidden(args.hidden, counted, hidden_);
  }

  void run_split(std::int64_t split) {
    const std::int64_t ids = (vocabulary_ + num_splits_ - 1) / num_splits_;
    const std::int64_t begin = std::min(vocabulary_, split * ids), end = std::min(vocabulary_, begin + ids);
    float* grad = partials_ + split * counted_.count * width_;
    for (std::int64_t v0 = begin; v0 < end; v0 += kPanelIds) {
      const std::int64_t num_ids = std::min(kPanelIds, end - v0);
      const MatrixView panel = offset_view(head_, v0, 0);
      float* logits = scratch_floats(Scratch::kTile, counted_.count * kPanelIds);
      gemm(counted_.count, num_ids, width_, dense_view(hidden_, DType::kFloat32, width_), transposed(panel),
           logits, num_ids, false);
      transform_.finish(logits, counted_.count, v0, num_ids, num_ids);
      for (std::int64_t i = 0; i < counted_.count; ++i) {
        update_row(states_[index(split, i)], i, v0, num_ids, logits + i * num_ids, grad + i * width_);
      }
      if (args_.grad_hidden.defined) {
        gemm(counted_.count, width_, num_ids, dense_view(logits, DType::kFloat32, num_ids), panel, grad,
             width_, v0 > begin);
      }
    }
  }

  void merge_row(std::int64_t i, double* row_loss) const {
    const RowState total = merged_state(states_.data(), num_splits_, counted_.count, i);
    const float target_logit = target_logits_[static_cast<std::size_t>(i)];
    row_loss[i] = loss_of_row(args_.terms, total, target_logit, vocabulary_);
    if (!args_.grad_hidden.defined) return;
    const double total_weight =
        softmax_weight(args_.terms, total.log_sum_exp()) * transform_.scale() / total.sum;
    float* out = args_.grad_hidden.as<float>() + counted_.rows[i] * width_;
    for (std::int64_t split = 0; split < num_splits_; ++split) {
      const double shrunk = std::exp(static_cast<double>(state(split, i).max) - total.max);
      const float factor = static_cast<float>(shrunk * total_weight);
      const float* part = partials_ + (split * counted_.count + i) * width_;
      for (std::int64_t k = 0; k < width_; ++k) out[k] += factor * part[k];
    }
    const std::int64_t first = target(i) * width_;
    const float factor = static_cast<float>(transform_.cap_slope(target_logit) * transform_.scale());
    for (std::int64_t k = 0; k < width_; ++k) {
      out[k] -= factor * (args_.head_weight.dtype == DType::kBFloat16
                              ? bfloat16_to_float(args_.head_weight.as<const BFloat16Bits>()[first + k])
                              : args_.head_weight.as<const float>()[first + k]);
    }
  }

 private:
  std::size_t index(std::int64_t split, std::int64_t i) const {
    return static_cast<std::size_t>(split * counted_.count + i);
  }
  const RowState& state(std::int64_t split, std::int64_t i) const { return states_[index(split, i)]; }
  std::int64_t target(std::int64_t i) const {
    return args_.targets.as<const std::int64_t>()[counted_.rows[i]];
  }

  // One row of one panel: logits become exp(logits - max), times the cap's slope, where a gradient is wanted.
  void update_row(RowState& state, std::int64_t i, std::int64_t v0, std::int64_t num_ids, float* logits,
                  float* grad) {
    const std::int64_t position = target(i) - v0;
    if (position >= 0 && position < num_ids) target_logits_[static_cast<std::size_t>(i)] = logits[position];
    const RowState before = state;
    const double kept = state.add(sums_of(logits, num_ids, args_.terms));
    if (!args_.grad_hidden.defined) return;
    if (before.sum != 0.0 && state.max > before.max) {
      const float factor = static_cast<float>(kept);
      for (std::int64_t k = 0; k < width_; ++k) grad[k] *= factor;
    }
    kernels().row_softmax(logits, DType::kFloat32, num_ids,
                          {state.max, 1.0f, 0.0f, transform_.inverse_softcap()}, logits);
  }

  const LinearCrossEntropyArgs& args_;
  CountedRows counted_;
  std::int64_t num_splits_, width_, vocabulary_;
  MatrixView head_;
  Logits transform_;
  float* hidden_;                     // [count, K]
  float* partials_;                   // [num_splits, count, K]
  std::vector<RowState> states_;      // [num_splits, count]
  std::vector<float> target_logits_;  // [count], each written by the split that has the target
};

}  // namespace

void linear_cross_entropy_panels(const LinearCrossEntropyArgs& args, const LinearCrossEntropyPlan& plan,
                                 const CountedRows& counted, double* row_loss, int num_threads) {
  Panels panels(args, plan, counted);
  parallel_for(num_threads, plan.num_splits, 1,
               [&](std::int64_t split, std::int64_t) { panels.run_split(split); });
  parallel_for(num_threads, counted.count, 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) panels.merge_row(i, row_loss);
  });
}

}  // namespace pyft::cpu
