// Loss and dHidden of a linear layer's logits with the vocabulary in panels: no row of logits is ever whole.
// For a row h with target y, product x[v] = h . W[v], logit l[v] = cap(scale (x[v] + bias[v])):
//
//   lse   = log(sum_v exp(l[v]))
//   dh    = scale sum_v (softmax[v] (1 + 2 z_loss lse) - [v = y]) cap'(l[v]) W[v]        no label smoothing
//         = a A + b W[y]
//   A     = sum_(v != y) exp(l[v] - M) cap'(l[v]) W[v]     S = sum_v exp(l[v] - M)
//   a     = scale (1 + 2 z_loss lse) / S                   cap'(l) = 1 - (l / softcap)^2, or 1
//   b     = scale (exp(l[y] - M) / S (1 + 2 z_loss lse) - 1) cap'(l[y])
//
// A and S are sums over the vocabulary of things that are known within a panel, so they are added up panel by
// panel; when M, the row's reference, grows, what there is of both is multiplied by exp(old M - new M). The
// target is left out of A: where it has nearly all of the softmax, b is a small difference that weights
// rounded to bfloat16 would drown. Label smoothing adds -smoothing / V sum_v cap'(l[v]) W[v], a second sum as
// dear as A: with it, gradients go by chunks (linear_cross_entropy_chunks.cu).
//
//   products of a panel, by torch        [C rows x P ids] float32
//     linear_cross_entropy_panel_kernel  one block to a row, 8 products to a thread, in registers; 512
//                                        threads for 4096 ids. Writes exp(l - M) cap'(l) over them, in
//                                        hidden's dtype:
//
//       before   |x0  |x1  |x2  |x3  | ..  |xP-1 |          4 P bytes a row
//       after    |w0w1|w2w3| ..      | not used  |          bfloat16: the first half. All of the row has been
//                                                           read before the barriers in between
//   A += weights W[panel], by torch      [C x K] float32
//     linear_cross_entropy_finish_kernel one block to a row
//
// M is the largest logit for float32. For bfloat16 it may stay behind it by up to kSlack, which costs nothing
// (weights are rounded relative to their size) and nearly always spares the pass over A. A row that is not
// used is left as it is: what it makes of A is not read. Shared memory: 384 bytes.
#include "cuda/device/loss.h"
#include "cuda/device/memory.h"
#include "cuda/device/warp.h"
#include "cuda/operations.h"

namespace pyft::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kFinishThreads = 256;
constexpr float kSlack = 8.0f;  // exp(8) = 2981

// A row of row_stats: M, S, the target's logit, and the sum of the logits.
struct RowStats {
  float reference, sum, target_logit, total;
};

struct PanelRows {
  float* products;
  std::int64_t stride, width;  // stride in floats
  const std::int64_t* targets;
  RowStats* stats;
  float* sums;
  std::int64_t num_features;
};

// A thread's eight products turned into logits; behind the row's end the lowest there is.
template <typename T>
__device__ __forceinline__ void load_logits(const float* row, const T* bias, const Logits& logits,
                                            std::int64_t first, std::int64_t width, bool is_whole_words,
                                            float (&values)[8]) {
  load_run(row, first, width, is_whole_words, values);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const bool exists = first + i < width;
    const float shift = bias && exists ? to_float(bias[first + i]) : 0.0f;
    values[i] = exists ? logits(values[i], shift) : kLowest;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    linear_cross_entropy_panel_kernel(PanelRows rows, const T* bias, Logits logits, std::int64_t ignore_index,
                                      std::int64_t first_id, bool is_whole_words, bool writes_weights) {
  PYFT_SHARED(float, largest_of_warps, kWarpSize);
  PYFT_SHARED(float, sums_of_warps, kWarpSize);
  PYFT_SHARED(float, totals_of_warps, kWarpSize);
  const std::int64_t t = blockIdx.x, target = rows.targets[t];
  if (target == ignore_index) return;
  float* const row = rows.products + t * rows.stride;
  const std::int64_t first = 8 * static_cast<std::int64_t>(threadIdx.x);
  const bool is_new = first_id == 0;
  const RowStats before = is_new ? RowStats{kLowest, 0.0f, 0.0f, 0.0f} : rows.stats[t];

  float values[8];
  load_logits(row, bias, logits, first, rows.width, is_whole_words, values);
  float largest = values[0];
#pragma unroll
  for (int i = 1; i < 8; ++i) largest = Max()(largest, values[i]);
  largest = reduce_block(largest, kLowest, largest_of_warps, Max());
  const float slack = sizeof(T) == sizeof(float) ? 0.0f : kSlack;
  const float reference =
      is_new || largest > before.reference + slack ? Max()(largest, before.reference) : before.reference;

  float weights[8], sum = 0.0f, total = 0.0f, target_logit = 0.0f;
  bool has_target = false;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const bool exists = first + i < rows.width, is_target = exists && first_id + first + i == target;
    const float power = exists ? expf(values[i] - reference) : 0.0f;
    sum += power;
    total += exists ? values[i] : 0.0f;
    weights[i] = is_target ? 0.0f : power * logits.cap_slope(values[i]);
    if (is_target) target_logit = values[i];
    has_target = has_target || is_target;
  }
  sum = reduce_block(sum, 0.0f, sums_of_warps, Sum());
  total = reduce_block(total, 0.0f, totals_of_warps, Sum());
  if (writes_weights) {
    store_run(reinterpret_cast<T*>(row), first, rows.width, is_whole_words, weights);
  }
  const float factor = is_new ? 1.0f : expf(before.reference - reference);
  RowStats& after = rows.stats[t];
  if (threadIdx.x == 0) {
    after.reference = reference;
    after.sum = before.sum * factor + sum;
    after.total = before.total + total;
  }
  if (has_target) after.target_logit = target_logit;  // one thread of all, once in all panels
  if (!rows.sums || is_new || factor == 1.0f) return;
  float* const sums = rows.sums + t * rows.num_features;
  for (std::int64_t k = threadIdx.x; k < rows.num_features; k += blockDim.x) sums[k] *= factor;
}

template <typename T>
__global__ void __launch_bounds__(kFinishThreads)
    linear_cross_entropy_finish_kernel(const RowStats* row_stats, const std::int64_t* row_targets,
                                       const std::int64_t* rows, std::int64_t ignore_index,
                                       const T* head_weight, std::int64_t vocabulary, std::int64_t width,
                                       Logits logits, Terms terms, const float* sums, float* row_losses,
                                       float* grad_hidden) {
  const std::int64_t t = blockIdx.x, target = row_targets[t];
  if (target == ignore_index) {
    if (threadIdx.x == 0) row_losses[t] = 0.0f;
    return;
  }
  const bool exists = target >= 0 && target < vocabulary;
  const RowStats& stats = row_stats[t];
  const RowSums row{stats.reference, stats.sum, stats.total};
  const float target_logit = exists ? stats.target_logit : not_a_number();
  if (threadIdx.x == 0) row_losses[t] = loss_of_row(terms, row, target_logit, vocabulary);
  if (!grad_hidden || rows[t] < 0) return;
  const float extra = 2.0f * terms.z_loss * (row.reference + logf(row.sum));
  const float of_sums = logits.scale * (1.0f + extra) / row.sum;
  const float share = expf(target_logit - row.reference) / row.sum;
  const float of_target =
      logits.scale * logit_gradient(terms, share, extra, true) * logits.cap_slope(target_logit);
  const T* const weight = head_weight + (exists ? target : 0) * width;
  float* const out = grad_hidden + rows[t] * width;
  for (std::int64_t k = threadIdx.x; k < width; k += blockDim.x) {
    out[k] = of_sums * sums[t * width + k] + of_target * to_float(weight[k]);
  }
}

template <typename T>
void launch_panel(const LinearCrossEntropyPanelArgs& args, const Queue& queue) {
  const TensorRef& products = args.products;
  const PanelRows rows{products.as<float>(),
                       products.strides[0],
                       products.shape[1],
                       args.row_targets.as<const std::int64_t>(),
                       args.row_stats.as<RowStats>(),
                       args.sums.defined ? args.sums.as<float>() : nullptr,
                       args.sums.defined ? args.sums.shape[1] : 0};
  launch(linear_cross_entropy_panel_kernel<T>,
         {"linear_cross_entropy_panel_kernel", dim3(static_cast<unsigned>(products.shape[0])),
          dim3(whole_warps((rows.width + 7) / 8, kThreads)), 0},
         queue, rows, args.logits.bias.defined ? args.logits.bias.as<const T>() : nullptr,
         logits_of(args.logits), args.ignore_index, args.first_id,
         rows.stride % 4 == 0 && is_aligned(rows.products, 16), args.weights.defined);
}

template <typename T>
void launch_finish(const LinearCrossEntropyFinishArgs& args, const Queue& queue) {
  const std::int64_t vocabulary = args.head_weight.shape[0], width = args.head_weight.shape[1];
  launch(linear_cross_entropy_finish_kernel<T>,
         {"linear_cross_entropy_finish_kernel", dim3(static_cast<unsigned>(args.rows.shape[0])),
          dim3(whole_warps(width, kFinishThreads)), 0},
         queue, args.row_stats.as<const RowStats>(), args.row_targets.as<const std::int64_t>(),
         args.rows.as<const std::int64_t>(), args.ignore_index, args.head_weight.as<const T>(), vocabulary,
         width, logits_of(args.logits), terms_of(args.terms, vocabulary),
         args.sums.defined ? args.sums.as<const float>() : nullptr, args.row_losses.as<float>(),
         args.grad_hidden.defined ? args.grad_hidden.as<float>() : nullptr);
}

}  // namespace

void linear_cross_entropy_panel(const LinearCrossEntropyPanelArgs& args, std::uintptr_t stream) {
  const Queue queue(args.products, stream);
  const TensorRef& narrow = args.weights.defined ? args.weights : args.logits.bias;
  if (narrow.defined && narrow.dtype == DType::kBFloat16) {
    launch_panel<__nv_bfloat16>(args, queue);
  } else {
    launch_panel<float>(args, queue);
  }
}

void linear_cross_entropy_finish(const LinearCrossEntropyFinishArgs& args, std::uintptr_t stream) {
  const Queue queue(args.row_stats, stream);
  if (args.head_weight.dtype == DType::kBFloat16) {
    launch_finish<__nv_bfloat16>(args, queue);
  } else {
    launch_finish<float>(args, queue);
  }
}

}  // namespace pyft::cuda
