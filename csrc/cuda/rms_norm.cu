// RMSNorm of rows [T, K], and its gradient; ops/rms_norm.h has the formulas.
//
//   rms_norm_kernel            a group of threads to a row: one warp up to K = 1024, else a block of 256. The
//                              row's first kRuns runs of eight a thread stay in registers between the sum of
//                              squares and the product; what is wider is read again, from the cache.
//   rms_norm_backward_kernel   the same with x and dY; one row to a group, or, where the weight trains, the
//                              ceil(T / P) rows of one partial sum, its columns again in registers
//   rms_norm_partials_kernel   32 columns to a block: the P partial sums added in float64, in one order
//
//   one row:  | run 0 of thread 0, 1, .. kGroup - 1 | run 1 of thread 0, 1, .. | .. |        8 entries a run
//
// Every entry is read once and written once: memory bound. Shared memory: 2 KiB at most. No atomics: the same
// inputs give the same bits. Shapes and contiguity are checked in dispatch/; rows that do not begin at 16
// bytes are read entry by entry.
#include "cuda/device/memory.h"
#include "cuda/device/warp.h"
#include "cuda/operations.h"

namespace pyft::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRuns = 4;
constexpr int kColumns = 32;  // of a block of rms_norm_partials_kernel

// All threads of a group get the sum; `exchange`, for groups that are blocks, is free again after the group's
// next barrier.
template <int kGroup>
__device__ __forceinline__ float sum_of_group(float value, float* exchange) {
  if constexpr (kGroup == kWarpSize) {
    return reduce_lanes(value, Sum());
  } else {
    return reduce_block(value, 0.0f, exchange, Sum());
  }
}

// body(first, slot) for each run of this thread; slot is its place in registers, or kRuns where it has none.
template <int kGroup, typename Body>
__device__ __forceinline__ void for_each_run(int member, std::int64_t width, const Body& body) {
#pragma unroll
  for (int run = 0; run < kRuns; ++run) {
    const std::int64_t first = 8 * static_cast<std::int64_t>(member + run * kGroup);
    if (first < width) body(first, run);
  }
  for (std::int64_t first = 8 * static_cast<std::int64_t>(member + kRuns * kGroup); first < width;
       first += 8 * kGroup)
    body(first, kRuns);
}

template <typename T, int kGroup>
__global__ void __launch_bounds__(kThreads)
    rms_norm_kernel(const T* x, const T* weight, std::int64_t num_rows, std::int64_t width, float eps,
                    float offset, bool is_whole_words, T* y, float* inverse_rms) {
  PYFT_SHARED(float, exchange, kWarpSize);
  const int member = static_cast<int>(threadIdx.x) % kGroup;
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * (kThreads / kGroup) + threadIdx.x / kGroup;
  if (t >= num_rows) return;  // whole warps
  const T* const row = x + t * width;
  T* const out = y + t * width;
  float kept[kRuns][8], other[8], square = 0.0f;
  for_each_run<kGroup>(member, width, [&](std::int64_t first, int slot) {
    float (&values)[8] = slot < kRuns ? kept[slot] : other;
    load_run(row, first, width, is_whole_words, values);
#pragma unroll
    for (int i = 0; i < 8; ++i) square += values[i] * values[i];
  });
  square = sum_of_group<kGroup>(square, exchange);
  const float scale = 1.0f / sqrtf(square / static_cast<float>(width) + eps);
  if (member == 0) inverse_rms[t] = scale;
  for_each_run<kGroup>(member, width, [&](std::int64_t first, int slot) {
    float (&values)[8] = slot < kRuns ? kept[slot] : other;
    if (slot == kRuns) load_run(row, first, width, is_whole_words, values);
    float factors[8];
    load_run(weight, first, width, is_whole_words, factors);
#pragma unroll
    for (int i = 0; i < 8; ++i) factors[i] = values[i] * scale * (factors[i] + offset);
    store_run(out, first, width, is_whole_words, factors);
  });
}

// The rows of one group; without partials each has one row.
struct Rows {
  std::int64_t num_rows, width, num_groups, rows_each;
};

template <typename T, int kGroup, bool kTrainsWeight>
__global__ void __launch_bounds__(kThreads, kTrainsWeight ? 1 : 2)
    rms_norm_backward_kernel(const T* grad_y, const T* x, const T* weight, const float* inverse_rms,
                             Rows rows, float offset, bool is_whole_words, T* grad_x, float* partials) {
  PYFT_SHARED(float, exchange, 2 * kWarpSize);
  const int member = static_cast<int>(threadIdx.x) % kGroup;
  const std::int64_t width = rows.width;
  const std::int64_t group =
      static_cast<std::int64_t>(blockIdx.x) * (kThreads / kGroup) + threadIdx.x / kGroup;
  if (group >= rows.num_groups) return;  // whole warps
  float* const partial = kTrainsWeight ? partials + group * width : nullptr;
  float sums[kRuns][8] = {};
  if (kTrainsWeight) {
    for_each_run<kGroup>(member, width, [&](std::int64_t first, int slot) {
      if (slot == kRuns) store_run(partial, first, width, false, sums[0]);
    });
  }
  std::int64_t t = group * rows.rows_each;
  for (std::int64_t count = 0; count < rows.rows_each && t < rows.num_rows; ++count, ++t) {
    const T *const row = x + t * width, *const gradient_row = grad_y + t * width;
    const float scale = inverse_rms[t];
    float kept_x[kRuns][8], kept_g[kRuns][8], other_x[8], other_g[8], along = 0.0f;
    for_each_run<kGroup>(member, width, [&](std::int64_t first, int slot) {
      float (&normed)[8] = slot < kRuns ? kept_x[slot] : other_x;
      float (&gradient)[8] = slot < kRuns ? kept_g[slot] : other_g;
      float factors[8];
      load_run(row, first, width, is_whole_words, normed);
      load_run(gradient_row, first, width, is_whole_words, gradient);
      load_run(weight, first, width, is_whole_words, factors);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        normed[i] *= scale;
        along += gradient[i] * (factors[i] + offset) * normed[i];
      }
    });
    // Two rooms by turns: one is written again only after the barrier of the other.
    along = sum_of_group<kGroup>(along, exchange + count % 2 * kWarpSize);
    const float mean = along / static_cast<float>(width);
    for_each_run<kGroup>(member, width, [&](std::int64_t first, int slot) {
      float (&normed)[8] = slot < kRuns ? kept_x[slot] : other_x;
      float (&gradient)[8] = slot < kRuns ? kept_g[slot] : other_g;
      float factors[8];
      if (slot == kRuns) {
        load_run(row, first, width, is_whole_words, normed);
        load_run(gradient_row, first, width, is_whole_words, gradient);
#pragma unroll
        for (int i = 0; i < 8; ++i) normed[i] *= scale;
      }
      if (kTrainsWeight) {
        float total[8];
        if (slot == kRuns) load_run(partial, first, width, false, total);
        float (&sum)[8] = slot < kRuns ? sums[slot] : total;
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[i] += gradient[i] * normed[i];
        if (slot == kRuns) store_run(partial, first, width, false, sum);
      }
      load_run(weight, first, width, is_whole_words, factors);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        factors[i] = (gradient[i] * (factors[i] + offset) - normed[i] * mean) * scale;
      }
      store_run(grad_x + t * width, first, width, is_whole_words, factors);
    });
  }
  if (kTrainsWeight) {
    for_each_run<kGroup>(member, width, [&](std::int64_t first, int slot) {
      if (slot < kRuns) store_run(partial, first, width, false, sums[slot]);
    });
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    rms_norm_partials_kernel(const float* partials, std::int64_t num_partials, std::int64_t width,
                             T* grad_weight) {
  PYFT_SHARED(double, sums, kThreads);
  const int column = static_cast<int>(threadIdx.x) % kColumns;
  const std::int64_t k = static_cast<std::int64_t>(blockIdx.x) * kColumns + column;
  double sum = 0.0;
  if (k < width) {
    for (std::int64_t p = threadIdx.x / kColumns; p < num_partials; p += kThreads / kColumns) {
      sum += partials[p * width + k];
    }
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x >= kColumns || k >= width) return;
  for (int i = 1; i < kThreads / kColumns; ++i) sum += sums[i * kColumns + column];
  store_rounded(grad_weight + k, static_cast<float>(sum));
}

bool fits_a_warp(std::int64_t width) { return width <= 8 * kWarpSize * kRuns; }

Launch launch_of(const char* kernel, std::int64_t num_groups, std::int64_t width) {
  const std::int64_t groups_a_block = fits_a_warp(width) ? kThreads / kWarpSize : 1;
  const std::int64_t num_blocks = (num_groups + groups_a_block - 1) / groups_a_block;
  return {kernel, dim3(static_cast<unsigned>(num_blocks)), dim3(kThreads), 0};
}

template <typename T>
void launch_forward(const RmsNormArgs& args, const Queue& queue) {
  const std::int64_t num_rows = args.x.shape[0], width = args.x.shape[1];
  const T *const x = args.x.as<const T>(), *const weight = args.weight.as<const T>();
  T* const y = args.y.as<T>();
  const bool is_whole_words =
      width % 8 == 0 && is_aligned(x, 16) && is_aligned(weight, 16) && is_aligned(y, 16);
  launch(fits_a_warp(width) ? rms_norm_kernel<T, kWarpSize> : rms_norm_kernel<T, kThreads>,
         launch_of("rms_norm_kernel", num_rows, width), queue, x, weight, num_rows, width,
         static_cast<float>(args.eps), static_cast<float>(args.weight_offset), is_whole_words, y,
         args.inverse_rms.as<float>());
}

template <typename T, bool kTrainsWeight>
void launch_backward(const RmsNormBackwardArgs& args, const Queue& queue) {
  Rows rows{args.x.shape[0], args.x.shape[1], args.x.shape[0], 1};
  if (kTrainsWeight) {
    rows.num_groups = args.partials.shape[0];
    rows.rows_each = (rows.num_rows + rows.num_groups - 1) / rows.num_groups;
  }
  const T *const grad_y = args.grad_y.as<const T>(), *const x = args.x.as<const T>();
  const T* const weight = args.weight.as<const T>();
  T* const grad_x = args.grad_x.as<T>();
  float* const partials = kTrainsWeight ? args.partials.as<float>() : nullptr;
  const bool is_whole_words = rows.width % 8 == 0 && is_aligned(grad_y, 16) && is_aligned(x, 16) &&
                              is_aligned(weight, 16) && is_aligned(grad_x, 16);
  launch(fits_a_warp(rows.width) ? rms_norm_backward_kernel<T, kWarpSize, kTrainsWeight>
                                 : rms_norm_backward_kernel<T, kThreads, kTrainsWeight>,
         launch_of("rms_norm_backward_kernel", rows.num_groups, rows.width), queue, grad_y, x, weight,
         args.inverse_rms.as<const float>(), rows, static_cast<float>(args.weight_offset), is_whole_words,
         grad_x, partials);
  if (!kTrainsWeight) return;
  const unsigned num_blocks = static_cast<unsigned>((rows.width + kColumns - 1) / kColumns);
  launch(rms_norm_partials_kernel<T>, {"rms_norm_partials_kernel", dim3(num_blocks), dim3(kThreads), 0},
         queue, static_cast<const float*>(partials), rows.num_groups, rows.width, args.grad_weight.as<T>());
}

}  // namespace

void rms_norm(const RmsNormArgs& args, std::uintptr_t stream) {
  const Queue queue(args.x, stream);
  if (args.x.dtype == DType::kBFloat16) {
    launch_forward<__nv_bfloat16>(args, queue);
  } else {
    launch_forward<float>(args, queue);
  }
}

void rms_norm_backward(const RmsNormBackwardArgs& args, std::uintptr_t stream) {
  const Queue queue(args.x, stream);
  const bool is_bfloat16 = args.x.dtype == DType::kBFloat16;
  if (args.grad_weight.defined) {
    is_bfloat16 ? launch_backward<__nv_bfloat16, true>(args, queue)
                : launch_backward<float, true>(args, queue);
  } else {
    is_bfloat16 ? launch_backward<__nv_bfloat16, false>(args, queue)
                : launch_backward<float, false>(args, queue);
  }
}

}  // namespace pyft::cuda
