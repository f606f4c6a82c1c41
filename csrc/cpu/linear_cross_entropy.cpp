// linear_cross_entropy: loss and gradients from hidden [T, K] and head [V, K], logits for one chunk of tokens
// at a time.
//
// Only rows with a target are gathered (n of T). For each chunk of C of them:
//
//     h [C, K]  = gathered rows, float32
//     L [C, V]  = h W^T                          tiles over V; at most 32 MiB; then LogitTerms, in place
//     loss     += log-sum-exp - L[target] (LossTerms);  L = dLoss / d(h W^T), in place, row by row
//     dH [C, K] = L W                            num_splits partial sums over V, added in order
//     dW [V, K] += L^T h                         tiles over V; float32, only for a head that trains
//     db [V]   += sum of L's rows                only for a bias that trains
//
// With a large vocabulary a chunk would be so few rows that reading the head (and adding to its gradient) for
// each of them costs more than the products: a frozen head then goes by panels
// (linear_cross_entropy_panels.cpp), a trained one in two passes (linear_cross_entropy_two_passes.cpp), which
// plan_linear_cross_entropy tells the caller. Label smoothing goes in two passes too: its part of dHidden
// does not shrink with a row's maximum as the panels' sums do.
//
// Without a wanted gradient the last two, and the softmax, are left out. No sum crosses threads except
// through the splits, whose number depends on the shape alone: the bits do not depend on the number of
// threads.
#include "cpu/linear_cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/gemm.h"
#include "cpu/isa.h"
#include "cpu/operations.h"
#include "cpu/parallel.h"

namespace pyft {

LinearCrossEntropyPlan plan_linear_cross_entropy(std::int64_t num_tokens, std::int64_t width,
                                                 std::int64_t vocabulary, bool trains_head, bool smooths) {
  constexpr std::int64_t kBufferFloats = 8 << 20;  // 32 MiB each for logits and for partial sums
  constexpr std::int64_t kPanelVocabulary = 16384, kPanelTokens = 512, kPanelSplits = 16;
  constexpr std::int64_t kMaxChunk = 1024, kMaxSplits = 8, kMinSplitIds = 512;
  num_tokens = std::max<std::int64_t>(num_tokens, 1);
  width = std::max<std::int64_t>(width, 1);
  vocabulary = std::max<std::int64_t>(vocabulary, 1);
  LinearCrossEntropyPlan plan{};
  plan.by_two_passes = (trains_head || smooths) && vocabulary >= kPanelVocabulary;
  plan.by_panels = !plan.by_two_passes && vocabulary >= kPanelVocabulary;
  if (plan.by_panels) {
    plan.num_splits = kPanelSplits;
    plan.chunk_tokens = std::clamp<std::int64_t>(kBufferFloats / (kPanelSplits * width), 1, kPanelTokens);
  } else {
    plan.chunk_tokens = std::clamp<std::int64_t>(kBufferFloats / vocabulary, 1, kMaxChunk);
    const std::int64_t fitting = kBufferFloats / (plan.chunk_tokens * width);
    plan.num_splits = std::clamp<std::int64_t>(std::min(fitting, vocabulary / kMinSplitIds), 1, kMaxSplits);
  }
  plan.chunk_tokens = std::min(plan.chunk_tokens, num_tokens);
  plan.workspace_floats = plan.chunk_tokens * (1 + plan.num_splits) * width;
  if (!plan.by_panels) plan.workspace_floats += plan.chunk_tokens * vocabulary;
  plan.kept_rows = trains_head ? std::min(num_tokens, width) : 0;
  return plan;
}

LinearCrossEntropyPlan plan_linear_cross_entropy(const LinearCrossEntropyArgs& args) {
  return plan_linear_cross_entropy(args.hidden.shape[0], args.hidden.shape[1], args.head_weight.shape[0],
                                   args.grad_head.defined || args.grad_bias.defined,
                                   args.terms.label_smoothing != 0.0);
}

}  // namespace pyft

namespace pyft::cpu {
namespace {

constexpr std::int64_t kTileVocabulary = 256;
constexpr std::int64_t kTileColumns = 128;

// The work on one chunk; buffers lie in the workspace one behind the other.
struct Chunk {
  const LinearCrossEntropyArgs& args;
  const LinearCrossEntropyPlan& plan;
  int num_threads;
  std::int64_t width;
  std::int64_t vocabulary;
  MatrixView head;
  Logits transform;
  float* logits;    // [C, V]
  float* hidden;    // [C, K]
  float* partials;  // [num_splits, C, K]

  CountedRows counted{};

  void compute_logits() const {
    parallel_for(num_threads, vocabulary, kTileVocabulary, [&](std::int64_t v0, std::int64_t v1) {
      gemm(counted.count, v1 - v0, width, dense_view(hidden, DType::kFloat32, width),
           transposed(offset_view(head, v0, 0)), logits + v0, vocabulary, false);
      transform.finish(logits + v0, counted.count, v0, v1 - v0, vocabulary);
    });
  }

  // body(i) for every row of the chunk.
  template <typename Body>
  void for_each_row(std::int64_t row_floats, const Body& body) const {
    parallel_for(num_threads, counted.count, rows_per_piece(row_floats),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t i = begin; i < end; ++i) body(i);
                 });
  }

  // Each row's loss; logits become the products' gradients when any is wanted.
  void compute_losses(double* row_loss) const {
    const std::int64_t* targets = args.targets.as<const std::int64_t>();
    const bool wants_gradient = args.grad_hidden.defined || args.grad_head.defined || args.grad_bias.defined;
    for_each_row(vocabulary, [&](std::int64_t i) {
      float* row = logits + i * vocabulary;
      const std::int64_t target = targets[counted.rows[i]];
      const RowSums sums = sums_of(row, vocabulary, args.terms);
      row_loss[i] = loss_of_row(args.terms, sums, row[target], vocabulary);
      if (!wants_gradient) return;
      write_gradient(row, sums, target, 0, vocabulary, vocabulary, transform, args.terms, 1.0, row);
    });
  }

  void backward_hidden() const {
    const std::int64_t split_rows = (vocabulary + plan.num_splits - 1) / plan.num_splits;
    const std::int64_t tiles_across = (width + kTileColumns - 1) / kTileColumns;
    parallel_for(num_threads, plan.num_splits * tiles_across, 1, [&](std::int64_t piece, std::int64_t) {
      const std::int64_t split = piece / tiles_across, k0 = piece % tiles_across * kTileColumns;
      const std::int64_t v0 = std::min(vocabulary, split * split_rows),
                         v1 = std::min(vocabulary, v0 + split_rows);
      const std::int64_t k1 = std::min(width, k0 + kTileColumns);
      gemm(counted.count, k1 - k0, v1 - v0, dense_view(logits + v0, DType::kFloat32, vocabulary),
           offset_view(head, v0, k0), partials + split * counted.count * width + k0, width, false);
    });
    for_each_row(width * plan.num_splits, [&](std::int64_t i) {
      float* out = args.grad_hidden.as<float>() + counted.rows[i] * width;
      for (std::int64_t split = 0; split < plan.num_splits; ++split) {
        const float* part = partials + (split * counted.count + i) * width;
        for (std::int64_t k = 0; k < width; ++k) out[k] += part[k];
      }
    });
  }

  void backward_head() const {
    parallel_for(num_threads, vocabulary, kTileVocabulary, [&](std::int64_t v0, std::int64_t v1) {
      gemm(v1 - v0, width, counted.count, transposed(dense_view(logits + v0, DType::kFloat32, vocabulary)),
           dense_view(hidden, DType::kFloat32, width), args.grad_head.as<float>() + v0 * width, width, true);
    });
  }

  void backward_bias() const {
    parallel_for(num_threads, vocabulary, kTileVocabulary, [&](std::int64_t v0, std::int64_t v1) {
      float* out = args.grad_bias.as<float>() + v0;
      for (double sum : sum_of_rows(logits + v0, counted.count, v1 - v0, vocabulary)) {
        *out++ += static_cast<float>(sum);
      }
    });
  }
};

void fill_zeros(const TensorRef& tensor, int num_threads) {
  if (!tensor.defined) return;
  parallel_for(num_threads, tensor.num_elements(), 1 << 20, [&](std::int64_t begin, std::int64_t end) {
    std::memset(tensor.as<float>() + begin, 0, static_cast<std::size_t>(end - begin) * sizeof(float));
  });
}

}  // namespace

std::vector<std::int64_t> find_counted(const TensorRef& targets, std::int64_t ignore_index) {
  std::vector<std::int64_t> rows;
  for (std::int64_t t = 0; t < targets.shape[0]; ++t) {
    if (targets.as<const std::int64_t>()[t] != ignore_index) rows.push_back(t);
  }
  return rows;
}

void gather_hidden(const TensorRef& hidden, const CountedRows& counted, float* out) {
  const std::int64_t width = hidden.shape[1];
  for (std::int64_t i = 0; i < counted.count; ++i, out += width) {
    const std::int64_t first = counted.rows[i] * width;
    if (hidden.dtype == DType::kFloat32) {
      std::memcpy(out, hidden.as<const float>() + first, static_cast<std::size_t>(width) * sizeof(float));
    } else {
      const BFloat16Bits* in = hidden.as<const BFloat16Bits>() + first;
      for (std::int64_t k = 0; k < width; ++k) out[k] = bfloat16_to_float(in[k]);
    }
  }
}

RowSums sums_of(const float* logits, std::int64_t count, const LossTerms& terms) {
  RowSums sums;
  kernels().row_max_and_sum(logits, DType::kFloat32, count, &sums.max, &sums.sum);
  if (terms.label_smoothing != 0.0) sums.total = kernels().row_sum(logits, DType::kFloat32, count);
  return sums;
}

void write_gradient(const float* logits, const RowSums& sums, std::int64_t target, std::int64_t v0,
                    std::int64_t num_ids, std::int64_t vocabulary, const Logits& transform,
                    const LossTerms& terms, double grad_loss, float* out) {
  const double scale = transform.scale() * grad_loss;
  const double weight = softmax_weight(terms, sums.log_sum_exp()) / sums.sum;
  const std::int64_t position = target - v0;
  const bool has_target = position >= 0 && position < num_ids;
  const float target_logit = has_target ? logits[position] : 0.0f;  // read first: `out` may be `logits`
  kernels().row_softmax(
      logits, DType::kFloat32, num_ids,
      {sums.max, static_cast<float>(weight * scale),
       static_cast<float>(uniform_weight(terms, vocabulary) * scale), transform.inverse_softcap()},
      out);
  if (has_target) {
    out[position] -= static_cast<float>(target_weight(terms) * transform.cap_slope(target_logit) * scale);
  }
}

std::vector<double> sum_of_rows(const float* rows, std::int64_t num_rows, std::int64_t count,
                                std::int64_t stride) {
  std::vector<double> sums(static_cast<std::size_t>(count), 0.0);
  for (std::int64_t i = 0; i < num_rows; ++i, rows += stride) {
    for (std::int64_t v = 0; v < count; ++v) sums[static_cast<std::size_t>(v)] += rows[v];
  }
  return sums;
}

RowState merged_state(const RowState* states, std::int64_t num_splits, std::int64_t count, std::int64_t i) {
  RowState total;
  for (std::int64_t split = 0; split < num_splits; ++split)
    total.max = std::max(total.max, states[split * count + i].max);
  for (std::int64_t split = 0; split < num_splits; ++split) {
    const RowState& part = states[split * count + i];
    total.sum += part.sum * std::exp(static_cast<double>(part.max) - total.max);
    total.total += part.total;
  }
  return total;
}

void linear_cross_entropy(const LinearCrossEntropyArgs& args, int num_threads) {
  const std::int64_t width = args.hidden.shape[1], vocabulary = args.head_weight.shape[0];
  const LinearCrossEntropyPlan plan = plan_linear_cross_entropy(args);
  const std::vector<std::int64_t> rows = find_counted(args.targets, args.ignore_index);
  const std::int64_t num_counted = static_cast<std::int64_t>(rows.size());
  std::vector<double> row_loss(rows.size(), 0.0);
  fill_zeros(args.grad_hidden, num_threads);
  fill_zeros(args.grad_head, num_threads);
  fill_zeros(args.grad_bias, num_threads);

  float* logits = args.workspace.as<float>();
  float* hidden = logits + plan.chunk_tokens * vocabulary;
  float* partials = hidden + plan.chunk_tokens * width;
  const MatrixView head = dense_view(args.head_weight.data, args.head_weight.dtype, width);
  Chunk chunk{args,   plan,   num_threads, width, vocabulary, head, Logits(args.logits),
              logits, hidden, partials};
  // chunks of equal size: a short last one would read the whole head for few rows
  const std::int64_t num_chunks = (num_counted + plan.chunk_tokens - 1) / plan.chunk_tokens;
  for (std::int64_t c = 0; c < num_chunks; ++c) {
    const std::int64_t begin = num_counted * c / num_chunks, end = num_counted * (c + 1) / num_chunks;
    chunk.counted = {rows.data() + begin, end - begin};
    if (plan.by_panels) {
      linear_cross_entropy_panels(args, plan, chunk.counted, row_loss.data() + begin, num_threads);
      continue;
    }
    gather_hidden(args.hidden, chunk.counted, hidden);
    chunk.compute_logits();
    chunk.compute_losses(row_loss.data() + begin);
    if (args.grad_hidden.defined) chunk.backward_hidden();
    if (args.grad_head.defined) chunk.backward_head();
    if (args.grad_bias.defined) chunk.backward_bias();
  }
  double loss = 0.0;
  for (double row : row_loss) loss += row;
  *args.loss.as<float>() = static_cast<float>(loss);
}

}  // namespace pyft::cpu
