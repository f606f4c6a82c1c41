// NF4 quantisation, and the second quantisation of absmax; equal to the CPU's to the bit, but for the offset
// when it is not given: its float64 sum has another order here.
//
//   nf4_quantize_kernel         256 threads, 8 values each: eight lanes share a block of 64 and its absmax
//       code = number of bounds below value / absmax         one word of codes a thread, coalesced
//   nf4_mean_kernel             one block; each thread sums every 1024th absmax in float64, then a tree
//   nf4_quantize_absmax_kernel  256 threads, one nested block: code by binary search in the 255 bounds
//
// Shared memory: 0, 8 KB / 32, 1 KB. Any number of weights; the last block of 64 may be short.
#include "cuda/device/memory.h"
#include "cuda/device/nf4.h"
#include "cuda/device/warp.h"
#include "cuda/operations.h"

namespace pyft::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 8;
constexpr int kLanesPerBlock = kNf4BlockSize / kPerThread;
constexpr int kMeanThreads = 1024;

// Number of bounds below a value: 15 less those not below it, which makes a NaN 15.
__device__ __forceinline__ std::uint32_t nf4_code(const Nf4Bounds& bounds, float scaled) {
  std::uint32_t code = 15;
#pragma unroll
  for (int i = 0; i < 15; ++i) code -= scaled <= bounds.data[i] ? 1u : 0u;
  return code;
}

template <typename In>
__global__ void __launch_bounds__(kThreads)
    nf4_quantize_kernel(const In* weight, std::int64_t num_weights, Nf4Bounds bounds, bool is_whole_words,
                        std::uint8_t* codes, float* absmax) {
  const std::int64_t thread = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t first = thread * kPerThread;
  const std::int64_t block = first / kNf4BlockSize;
  // A short last block is filled up with zeros; lanes beyond it stay, as their warp's reductions need them.
  float values[kPerThread] = {};
  if (is_whole_words && first + kPerThread <= num_weights) {
    load8(weight + first, values);
  } else {
    for (int i = 0; i < kPerThread && first + i < num_weights; ++i) values[i] = to_float(weight[first + i]);
  }
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i)
    largest = MaxOrNan()(largest, values[i] < 0.0f ? -values[i] : values[i]);
  largest = reduce_lanes<kLanesPerBlock>(largest, MaxOrNan());
  if (first >= num_weights) return;

  const bool is_short = (block + 1) * kNf4BlockSize > num_weights;
  const float divisor = largest < kSmallestAbsmax ? kSmallestAbsmax : largest;
  if (thread % kLanesPerBlock == 0) absmax[block] = is_short ? divisor : largest;
  const float inverse = __fdiv_rn(1.0f, divisor);
  std::uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const float scaled = is_short ? __fdiv_rn(values[i], divisor) : __fmul_rn(values[i], inverse);
    word |= nf4_code(bounds, scaled) << (8 * (i / 2) + (i % 2 ? 0 : 4));
  }
  if (is_whole_words && first + kPerThread <= num_weights) {
    *reinterpret_cast<std::uint32_t*>(codes + first / 2) = word;
  } else {
    for (int i = 0; i < kPerThread && first + i < num_weights; i += 2)
      codes[first / 2 + i / 2] = static_cast<std::uint8_t>(word >> 4 * i);
  }
}

__global__ void __launch_bounds__(kMeanThreads)
    nf4_mean_kernel(const float* values, std::int64_t num_values, float* mean) {
  PYFT_SHARED(double, sums, kWarpSize);
  double sum = 0.0;
  for (std::int64_t i = threadIdx.x; i < num_values; i += kMeanThreads) sum += values[i];
  sum = reduce_block(sum, 0.0, sums, Sum());
  if (threadIdx.x == 0) *mean = num_values ? static_cast<float>(sum / static_cast<double>(num_values)) : 0.0f;
}

__global__ void copy_offset_kernel(const float* from, float* to) { *to = *from; }

// The nearest entry of the map for one of 65536 steps from -1 to 1, as bitsandbytes' CPU code has it: near
// zero the map is finer than the steps, so this is not always the nearest entry of the value itself.
__device__ __forceinline__ std::uint8_t dynamic_code(const float* bounds, float value) {
  constexpr float kLastStep = 65535.0f;
  if (value != value) value = -1.0f;
  const float clamped = value < -1.0f ? -1.0f : value > 1.0f ? 1.0f : value;
  const float half = __fmul_rn(__fadd_rn(clamped, 1.0f), 0.5f);
  const float step = static_cast<float>(static_cast<int>(__fmaf_rn(half, kLastStep, 0.5f)) & 65535);
  const float stepped = __fadd_rn(__fdiv_rn(__fadd_rn(step, step), kLastStep), -1.0f);
  int code = 0;  // the number of bounds below it
  for (int half_width = 128; half_width > 0; half_width /= 2) {
    if (stepped > bounds[code + half_width - 1]) code += half_width;
  }
  return static_cast<std::uint8_t>(code);
}

__global__ void __launch_bounds__(kNestedBlockSize)
    nf4_quantize_absmax_kernel(const float* absmax, std::int64_t num_values, DynamicMap absmax_map,
                               const float* offset, std::uint8_t* codes, float* nested_absmax) {
  PYFT_SHARED(float, bounds, kNestedBlockSize);
  PYFT_SHARED(float, largest_of_warps, kWarpSize);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < 255)
    bounds[thread] = __fmul_rn(__fadd_rn(absmax_map.data[thread], absmax_map.data[thread + 1]), 0.5f);
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kNestedBlockSize + thread;
  const float centred = at < num_values ? __fadd_rn(absmax[at], -*offset) : 0.0f;
  // As on the CPU a NaN is passed over here.
  const float magnitude = centred < 0.0f ? -centred : centred;
  const float largest = reduce_block(magnitude > 0.0f ? magnitude : 0.0f, 0.0f, largest_of_warps, MaxOrNan());
  if (thread == 0) nested_absmax[blockIdx.x] = largest;
  if (at >= num_values) return;
  codes[at] =
      largest == 0.0f ? std::uint8_t{0} : dynamic_code(bounds, __fmul_rn(centred, __fdiv_rn(1.0f, largest)));
}

template <typename In>
void launch_quantize(const Nf4QuantizeArgs& args, const Queue& queue) {
  const std::int64_t num_weights = args.weight.num_elements();
  const std::int64_t num_blocks = (num_weights + kThreads * kPerThread - 1) / (kThreads * kPerThread);
  const In* const weight = args.weight.as<const In>();
  const bool is_whole_words = is_aligned(weight, 16) && is_aligned(args.codes.data, 4);
  launch(nf4_quantize_kernel<In>,
         {"nf4_quantize_kernel", dim3(static_cast<unsigned>(num_blocks)), dim3(kThreads), 0}, queue, weight,
         num_weights, kNf4Bounds, is_whole_words, args.codes.as<std::uint8_t>(), args.absmax.as<float>());
}

}  // namespace

void nf4_quantize(const Nf4QuantizeArgs& args, std::uintptr_t stream) {
  const Queue queue(args.codes, stream);
  if (args.weight.dtype == DType::kBFloat16) {
    launch_quantize<__nv_bfloat16>(args, queue);
  } else {
    launch_quantize<float>(args, queue);
  }
}

void nf4_quantize_absmax(const Nf4QuantizeAbsmaxArgs& args, std::uintptr_t stream) {
  const Queue queue(args.absmax_codes, stream);
  const float* const absmax = args.absmax.as<const float>();
  const std::int64_t num_values = args.absmax.num_elements();
  const std::int64_t num_blocks = (num_values + kNestedBlockSize - 1) / kNestedBlockSize;
  float* const offset = args.offset.as<float>();
  if (args.given_offset.defined) {
    launch(copy_offset_kernel, {"copy_offset_kernel", dim3(1), dim3(1), 0}, queue,
           args.given_offset.as<const float>(), offset);
  } else {
    launch(nf4_mean_kernel, {"nf4_mean_kernel", dim3(1), dim3(kMeanThreads), 0}, queue, absmax, num_values,
           offset);
  }
  launch(nf4_quantize_absmax_kernel,
         {"nf4_quantize_absmax_kernel", dim3(static_cast<unsigned>(num_blocks)), dim3(kNestedBlockSize), 0},
         queue, absmax, num_values, kDynamicMap, static_cast<const float*>(offset),
         args.absmax_codes.as<std::uint8_t>(), args.nested_absmax.as<float>());
}

}  // namespace pyft::cuda
