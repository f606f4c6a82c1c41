// Loss and gradient of a chunk of rows of a linear layer's logits, all of the vocabulary at once. For a row
// of products x with target y, l[v] = cap(scale (x[v] + bias[v])) and the loss of LossTerms (ops.h):
//
//   dx[v] = (softmax[v] (1 + 2 z_loss lse) - (1 - s) [v = y] - s / V) cap'(l[v]) scale
//
// linear_cross_entropy_chunk_kernel, one block to a row, of 512 threads unless V is small. The first pass
// finds the largest logit and the sums; the second writes dx over the products in hidden's dtype, 4096 ids a
// round:
//
//   round r reads     |          x [4096 r, 4096 r + 4096)          |   float32
//   round r writes    | dx |  into the floats [2048 r, 2048 r + 2048): read in this round or before, hence a
//                             barrier between reading and writing; what later rounds read lies behind
//
// 10 bytes move per logit. An unused row becomes zeros: it is multiplied with the others for dW. A target
// outside the vocabulary makes the row's loss and gradient NaN. Shared memory: 384 bytes.
#include "cuda/device/loss.h"
#include "cuda/device/memory.h"
#include "cuda/device/warp.h"
#include "cuda/operations.h"

namespace pyft::cuda {
namespace {

constexpr int kThreads = 512;

template <typename T>
struct ChunkRows {
  float* products;
  std::int64_t stride, vocabulary;  // stride in floats
  bool is_whole_words;
  const T* bias;
  Logits logits;

  // A thread's eight products; `shifts`: of the bias.
  __device__ __forceinline__ void load(const float* row, std::int64_t first, float (&values)[8]) const {
    load_run(row, first, vocabulary, is_whole_words, values);
    float shifts[8] = {};
    if (bias) load_run(bias, first, vocabulary, false, shifts);
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = logits(values[i], shifts[i]);
  }
};

template <typename T>
__device__ RowSums sums_of_row(const ChunkRows<T>& rows, const float* row) {
  PYFT_SHARED(float, largest_of_warps, kWarpSize);
  PYFT_SHARED(float, sums_of_warps, kWarpSize);
  PYFT_SHARED(float, totals_of_warps, kWarpSize);
  float largest = kLowest, sum = 0.0f, total = 0.0f;
  for (std::int64_t first = 8 * static_cast<std::int64_t>(threadIdx.x); first < rows.vocabulary;
       first += 8 * static_cast<std::int64_t>(blockDim.x)) {
    float values[8];
    rows.load(row, first, values);
    const std::int64_t left = rows.vocabulary - first;
    float highest = values[0];
#pragma unroll
    for (int i = 1; i < 8; ++i) highest = i < left ? Max()(highest, values[i]) : highest;
    if (highest > largest) {
      sum *= expf(largest - highest);
      largest = highest;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      sum += i < left ? expf(values[i] - largest) : 0.0f;
      total += i < left ? values[i] : 0.0f;
    }
  }
  const float row_largest = reduce_block(largest, kLowest, largest_of_warps, Max());
  sum = reduce_block(sum * expf(largest - row_largest), 0.0f, sums_of_warps, Sum());
  return {row_largest, sum, reduce_block(total, 0.0f, totals_of_warps, Sum())};
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    linear_cross_entropy_chunk_kernel(ChunkRows<T> rows, const std::int64_t* row_targets,
                                      std::int64_t ignore_index, Terms terms, float* row_losses) {
  const std::int64_t t = blockIdx.x, target = row_targets[t];
  float* const row = rows.products + t * rows.stride;
  T* const out = reinterpret_cast<T*>(row);
  const std::int64_t own = 8 * static_cast<std::int64_t>(threadIdx.x);
  if (target == ignore_index) {
    const float zeros[8] = {};
    for (std::int64_t first = own; first < rows.vocabulary;
         first += 8 * static_cast<std::int64_t>(blockDim.x))
      store_run(out, first, rows.vocabulary, rows.is_whole_words, zeros);
    if (threadIdx.x == 0) row_losses[t] = 0.0f;
    return;
  }
  const bool exists = target >= 0 && target < rows.vocabulary;
  float target_logit = not_a_number();
  if (threadIdx.x == 0 && exists)
    target_logit = rows.logits(row[target], rows.bias ? to_float(rows.bias[target]) : 0.0f);
  const RowSums sums = sums_of_row(rows, row);
  if (threadIdx.x == 0) row_losses[t] = loss_of_row(terms, sums, target_logit, rows.vocabulary);

  const float extra = 2.0f * terms.z_loss * (sums.reference + logf(sums.sum));
  const float inverse = exists ? 1.0f / sums.sum : not_a_number();
  for (std::int64_t start = 0; start < rows.vocabulary; start += 8 * static_cast<std::int64_t>(blockDim.x)) {
    const std::int64_t first = start + own;
    float values[8];
    rows.load(row, first, values);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float share = expf(values[i] - sums.reference) * inverse;
      values[i] = logit_gradient(terms, share, extra, first + i == target) * rows.logits.scale *
                  rows.logits.cap_slope(values[i]);
    }
    __syncthreads();
    store_run(out, first, rows.vocabulary, rows.is_whole_words, values);
  }
}

template <typename T>
void launch_chunk(const LinearCrossEntropyChunkArgs& args, const Queue& queue) {
  const TensorRef& products = args.products;
  const ChunkRows<T> rows{products.as<float>(),
                          products.strides[0],
                          products.shape[1],
                          products.strides[0] % 4 == 0 && is_aligned(products.data, 16),
                          args.logits.bias.defined ? args.logits.bias.as<const T>() : nullptr,
                          logits_of(args.logits)};
  launch(linear_cross_entropy_chunk_kernel<T>,
         {"linear_cross_entropy_chunk_kernel", dim3(static_cast<unsigned>(products.shape[0])),
          dim3(whole_warps((rows.vocabulary + 7) / 8, kThreads)), 0},
         queue, rows, args.row_targets.as<const std::int64_t>(), args.ignore_index,
         terms_of(args.terms, rows.vocabulary), args.row_losses.as<float>());
}

}  // namespace

void linear_cross_entropy_chunk(const LinearCrossEntropyChunkArgs& args, std::uintptr_t stream) {
  const Queue queue(args.products, stream);
  if (args.gradient.dtype == DType::kBFloat16) {
    launch_chunk<__nv_bfloat16>(args, queue);
  } else {
    launch_chunk<float>(args, queue);
  }
}

}  // namespace pyft::cuda
