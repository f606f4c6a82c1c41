// out[i] = kNf4Codebook[code of i] * absmax[i / 64], rounded to out's dtype; a nested absmax is decoded on
// the way, in the same launch. `out` is a rectangle of the weight: whole rows, which lie one behind the
// other, or some of the columns, a run of each row.
//
//   one block of 256 threads writes 8192 neighbouring weights of out, in four rounds of 2048:
//
//                thread 0      thread 1      ...  thread 255
//     round 0    0 .. 7        8 .. 15            2040 .. 2047       a thread reads one word of codes
//     round 1    2048 .. 2055  2056 .. 2063       4088 .. 4095       and writes 16 bytes of bfloat16
//     ...
//
// Eight threads share a block of 64, so their reads of absmax are one. Bytes per weight: 0.5 + 1/16 (or 1/64)
// read, 2 or 4 written: memory bound. Shared memory: 64 bytes, and 1 KB for a nested absmax. Any number of
// weights; where a pointer is not aligned, or for the last few weights, a thread writes one element at a
// time. That eight weights never leave their block or their row is checked in dispatch/nf4.cpp.
#include "cuda/device/memory.h"
#include "cuda/device/nf4.h"
#include "cuda/operations.h"

namespace pyft::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRounds = 4;
constexpr int kPerThread = 8;
constexpr int kPerRound = kThreads * kPerThread;

// Which weights: out[i] is the weight's element first + i, or, of runs of columns, that of
// first + (i / run) * stride + i % run.
struct Rectangle {
  std::int64_t first, num_weights;
  std::uint32_t run_groups;  // eights in a run
  std::int64_t stride;
};

template <bool kHasRuns>
__device__ __forceinline__ std::int64_t source_of(const Rectangle& part, std::int64_t i) {
  if constexpr (!kHasRuns) return part.first + i;
  const std::uint32_t group = static_cast<std::uint32_t>(i / kPerThread), row = group / part.run_groups;
  return part.first + row * part.stride + (group - row * part.run_groups) * kPerThread;
}

template <typename Out, bool kHasRuns>
__global__ void __launch_bounds__(kThreads)
    nf4_dequantize_kernel(Nf4Source weight, Nf4Codebook codebook, DynamicMap absmax_map, Rectangle part,
                          bool is_whole_words, Out* out) {
  PYFT_SHARED(float, values_of_codes, 16);
  PYFT_SHARED(float, values_of_absmax_codes, 256);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < 16) values_of_codes[thread] = codebook.data[thread];
  if (!weight.absmax) values_of_absmax_codes[thread] = absmax_map.data[thread];
  __syncthreads();

  const std::int64_t first =
      static_cast<std::int64_t>(blockIdx.x) * kRounds * kPerRound + thread * kPerThread;
  std::int64_t from[kRounds];
  std::uint32_t codes[kRounds];
  float absmax[kRounds];
  // All reads first, so that they are under way together.
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const std::int64_t at = first + round * kPerRound;
    if (at >= part.num_weights) continue;
    from[round] = source_of<kHasRuns>(part, at);
    absmax[round] = block_absmax(weight, values_of_absmax_codes, from[round] / kNf4BlockSize);
    if (is_whole_words && at + kPerThread <= part.num_weights)
      codes[round] = *reinterpret_cast<const std::uint32_t*>(weight.codes + from[round] / 2);
  }
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const std::int64_t at = first + round * kPerRound;
    if (at >= part.num_weights) continue;
    if (is_whole_words && at + kPerThread <= part.num_weights) {
      float values[kPerThread];
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
        // Byte i / 2 of the word, its high nibble first.
        const std::uint32_t code = codes[round] >> (8 * (i / 2) + (i % 2 ? 0 : 4)) & 15u;
        values[i] = __fmul_rn(values_of_codes[code], absmax[round]);
      }
      store8(out + at, values);
    } else {
      for (std::int64_t i = 0; i < kPerThread && at + i < part.num_weights; ++i) {
        const std::int64_t source = from[round] + i;
        const std::uint32_t code = weight.codes[source / 2] >> (source % 2 ? 0 : 4) & 15u;
        store_rounded(out + at + i, __fmul_rn(values_of_codes[code], absmax[round]));
      }
    }
  }
}

template <typename Out>
void launch_dequantize(const Nf4DequantizeArgs& args, const Queue& queue) {
  const std::int64_t columns = args.weight.num_columns, width = args.out.shape[1];
  const Rectangle part{args.first_row * columns + args.first_column, args.out.num_elements(),
                       static_cast<std::uint32_t>(width / kPerThread), columns};
  const std::int64_t num_blocks = (part.num_weights + kRounds * kPerRound - 1) / (kRounds * kPerRound);
  Out* const out = args.out.as<Out>();
  const bool is_whole_words = is_aligned(out, 16) && is_aligned(args.weight.codes.data, 4);
  launch(width < columns ? nf4_dequantize_kernel<Out, true> : nf4_dequantize_kernel<Out, false>,
         {"nf4_dequantize_kernel", dim3(static_cast<unsigned>(num_blocks)), dim3(kThreads), 0}, queue,
         nf4_source(args.weight), nf4_codebook(), kDynamicMap, part, is_whole_words, out);
}

}  // namespace

void nf4_dequantize(const Nf4DequantizeArgs& args, std::uintptr_t stream) {
  const Queue queue(args.out, stream);
  if (args.out.dtype == DType::kBFloat16) {
    launch_dequantize<__nv_bfloat16>(args, queue);
  } else {
    launch_dequantize<float>(args, queue);
  }
}

}  // namespace pyft::cuda
