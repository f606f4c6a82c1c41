// The cross-entropy of logits [T, V] and its gradient; LossTerms in ops.h has the formulas.
//
//   cross_entropy_kernel           one block of 512 threads to a row that counts. Each thread goes over every
//                                  512th run of 8 logits, with its own largest logit and its own sum of
//                                  exp(logit - largest); two trees join these. Rows that do not count are not
//                                  read.
//   cross_entropy_sum_kernel       one block adds the rows' losses in float64, in one order
//   cross_entropy_backward_kernel  one block to a row; `grad_logits` may be the logits themselves
//
// Reads each logit once per pass and writes it once: memory bound. Shared memory: 512 bytes. A target outside
// the vocabulary cannot be refused without waiting for the GPU: it makes the loss and the row's gradient NaN.
#include "cuda/device/loss.h"
#include "cuda/device/memory.h"
#include "cuda/device/warp.h"
#include "cuda/operations.h"

namespace pyft::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kSumThreads = 1024;

// body(first, values) for this thread's runs of eight of a row; the last run may have fewer, then padded with
// `padding`.
template <typename T, typename Body>
__device__ __forceinline__ void read_runs(const T* row, std::int64_t vocabulary, bool is_whole_words,
                                          float padding, const Body& body) {
  for (std::int64_t first = 8 * static_cast<std::int64_t>(threadIdx.x); first < vocabulary;
       first += 8 * kThreads) {
    float values[8];
    if (is_whole_words && first + 8 <= vocabulary) {
      load8(row + first, values);
    } else {
      for (int i = 0; i < 8; ++i) values[i] = first + i < vocabulary ? to_float(row[first + i]) : padding;
    }
    body(first, values);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    cross_entropy_kernel(const T* logits, const std::int64_t* targets, std::int64_t ignore_index,
                         std::int64_t vocabulary, Terms terms, bool is_whole_words, float* row_stats,
                         float* row_losses) {
  PYFT_SHARED(float, largest_of_warps, kWarpSize);
  PYFT_SHARED(float, sums_of_warps, kWarpSize);
  PYFT_SHARED(float, totals_of_warps, kWarpSize);
  const std::int64_t t = blockIdx.x, target = targets[t];
  if (target == ignore_index) {
    if (threadIdx.x == 0) row_stats[2 * t] = row_stats[2 * t + 1] = row_losses[t] = 0.0f;
    return;
  }
  const T* const row = logits + t * vocabulary;
  float largest = kLowest, sum = 0.0f, total = 0.0f;
  const bool smooths = terms.smoothing != 0.0f;
  read_runs(row, vocabulary, is_whole_words, kLowest, [&](std::int64_t first, const float (&values)[8]) {
    float highest = values[0];
    for (int i = 1; i < 8; ++i) highest = Max()(highest, values[i]);
    if (highest > largest) {
      sum *= expf(largest - highest);
      largest = highest;
    }
    for (int i = 0; i < 8; ++i) sum += first + i < vocabulary ? expf(values[i] - largest) : 0.0f;
    if (smooths) {
      for (int i = 0; i < 8; ++i) total += first + i < vocabulary ? values[i] : 0.0f;
    }
  });
  const float row_largest = reduce_block(largest, kLowest, largest_of_warps, Max());
  sum = reduce_block(sum * expf(largest - row_largest), 0.0f, sums_of_warps, Sum());
  if (smooths) total = reduce_block(total, 0.0f, totals_of_warps, Sum());
  if (threadIdx.x != 0) return;
  row_stats[2 * t] = row_largest;
  row_stats[2 * t + 1] = sum;
  const bool exists = target >= 0 && target < vocabulary;
  const float target_logit = exists ? to_float(row[target]) : not_a_number();
  row_losses[t] = loss_of_row(terms, {row_largest, sum, total}, target_logit, vocabulary);
}

__global__ void __launch_bounds__(kSumThreads)
    cross_entropy_sum_kernel(const float* row_losses, std::int64_t num_rows, float* loss) {
  PYFT_SHARED(double, sums, kWarpSize);
  double sum = 0.0;
  for (std::int64_t t = threadIdx.x; t < num_rows; t += kSumThreads) sum += row_losses[t];
  sum = reduce_block(sum, 0.0, sums, Sum());
  if (threadIdx.x == 0) *loss = static_cast<float>(sum);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    cross_entropy_backward_kernel(const float* grad_loss, const T* logits, const std::int64_t* targets,
                                  const float* row_stats, std::int64_t ignore_index, std::int64_t vocabulary,
                                  Terms terms, bool is_whole_words, T* grad_logits) {
  const std::int64_t t = blockIdx.x, target = targets[t];
  const bool counts = target != ignore_index;
  T* const out = grad_logits + t * vocabulary;
  const float scale = *grad_loss, largest = row_stats[2 * t], sum = row_stats[2 * t + 1];
  const float extra = counts ? 2.0f * terms.z_loss * (largest + logf(sum)) : 0.0f;
  const float inverse = target < 0 || target >= vocabulary ? not_a_number() : 1.0f / sum;
  const auto write = [&](std::int64_t first, const float (&values)[8]) {
    if (is_whole_words && first + 8 <= vocabulary) {
      store8(out + first, values);
    } else {
      for (int i = 0; i < 8 && first + i < vocabulary; ++i) store_rounded(out + first + i, values[i]);
    }
  };
  if (!counts) {
    const float zeros[8] = {};
    for (std::int64_t first = 8 * static_cast<std::int64_t>(threadIdx.x); first < vocabulary;
         first += 8 * kThreads)
      write(first, zeros);
    return;
  }
  read_runs(logits + t * vocabulary, vocabulary, is_whole_words, kLowest,
            [&](std::int64_t first, const float (&values)[8]) {
              float gradient[8];
              for (int i = 0; i < 8; ++i) {
                const float share = expf(values[i] - largest) * inverse;
                gradient[i] = logit_gradient(terms, share, extra, first + i == target) * scale;
              }
              write(first, gradient);
            });
}

template <typename T>
void launch_forward(const CrossEntropyArgs& args, const Queue& queue) {
  const std::int64_t num_rows = args.logits.shape[0], vocabulary = args.logits.shape[1];
  const T* const logits = args.logits.as<const T>();
  float* const row_losses = args.row_losses.as<float>();
  launch(cross_entropy_kernel<T>,
         {"cross_entropy_kernel", dim3(static_cast<unsigned>(num_rows)), dim3(kThreads), 0}, queue, logits,
         args.targets.as<const std::int64_t>(), args.ignore_index, vocabulary,
         terms_of(args.terms, vocabulary), vocabulary % 8 == 0 && is_aligned(logits, 16),
         args.row_stats.as<float>(), row_losses);
  launch(cross_entropy_sum_kernel, {"cross_entropy_sum_kernel", dim3(1), dim3(kSumThreads), 0}, queue,
         static_cast<const float*>(row_losses), num_rows, args.loss.as<float>());
}

template <typename T>
void launch_backward(const CrossEntropyBackwardArgs& args, const Queue& queue) {
  const std::int64_t num_rows = args.logits.shape[0], vocabulary = args.logits.shape[1];
  const T* const logits = args.logits.as<const T>();
  T* const grad_logits = args.grad_logits.as<T>();
  launch(cross_entropy_backward_kernel<T>,
         {"cross_entropy_backward_kernel", dim3(static_cast<unsigned>(num_rows)), dim3(kThreads), 0}, queue,
         args.grad_loss.as<const float>(), logits, args.targets.as<const std::int64_t>(),
         args.row_stats.as<const float>(), args.ignore_index, vocabulary, terms_of(args.terms, vocabulary),
         vocabulary % 8 == 0 && is_aligned(logits, 16) && is_aligned(grad_logits, 16), grad_logits);
}

}  // namespace

void cross_entropy(const CrossEntropyArgs& args, std::uintptr_t stream) {
  check_defined("cross_entropy", args.row_losses);
  const Queue queue(args.logits, stream);
  if (args.logits.dtype == DType::kBFloat16) {
    launch_forward<__nv_bfloat16>(args, queue);
  } else {
    launch_forward<float>(args, queue);
  }
}

void cross_entropy_backward(const CrossEntropyBackwardArgs& args, std::uintptr_t stream) {
  const Queue queue(args.logits, stream);
  if (args.logits.dtype == DType::kBFloat16) {
    launch_backward<__nv_bfloat16>(args, queue);
  } else {
    launch_backward<float>(args, queue);
  }
}

}  // namespace pyft::cuda
