// out[i] = kNf4Codebook[code of i] * absmax[i / 64], rounded to out's dtype; a nested absmax is decoded on
// the way, in the same launch.
//
//   one block of 256 threads writes 8192 neighbouring weights, in four rounds of 2048:
//
//     round 0   thread 0: weights 0..7   thread 1: 8..15   ...  thread 255: 2040..2047     one word of codes
//     each, round 1   thread 0: 2048..2055     ...                                               16 bytes of
//     bfloat16 out
//
// Eight threads share a block of 64, so their reads of absmax are one. Bytes per weight: 0.5 + 1/16 (or 1/64)
// read, 2 or 4 written: memory bound. Shared memory: 64 bytes, and 1 KB for a nested absmax. Any number of
// weights; where a pointer is not aligned, or for the last few weights, a thread writes one element at a
// time.
#include "cuda/device/memory.h"
#include "cuda/device/nf4.h"
#include "cuda/operations.h"

namespace pyft::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRounds = 4;
constexpr int kPerThread = 8;
constexpr int kPerRound = kThreads * kPerThread;

template <typename Out>
__global__ void __launch_bounds__(kThreads)
    nf4_dequantize_kernel(Nf4Source weight, Nf4Codebook codebook, DynamicMap map, std::int64_t num_weights,
                          bool is_whole_words, Out* out) {
  PYFT_SHARED(float, values_of_codes, 16);
  PYFT_SHARED(float, values_of_absmax_codes, 256);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < 16) values_of_codes[thread] = codebook.data[thread];
  if (!weight.absmax) values_of_absmax_codes[thread] = map.data[thread];
  __syncthreads();

  const std::int64_t first =
      static_cast<std::int64_t>(blockIdx.x) * kRounds * kPerRound + thread * kPerThread;
  std::uint32_t codes[kRounds];
  float absmax[kRounds];
  // All reads first, so that they are under way together.
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const std::int64_t at = first + round * kPerRound;
    if (at >= num_weights) continue;
    absmax[round] = block_absmax(weight, values_of_absmax_codes, at / kNf4BlockSize);
    if (is_whole_words && at + kPerThread <= num_weights)
      codes[round] = *reinterpret_cast<const std::uint32_t*>(weight.codes + at / 2);
  }
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const std::int64_t at = first + round * kPerRound;
    if (at >= num_weights) continue;
    if (is_whole_words && at + kPerThread <= num_weights) {
      float values[kPerThread];
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
        // Byte i / 2 of the word, its high nibble first.
        const std::uint32_t code = codes[round] >> (8 * (i / 2) + (i % 2 ? 0 : 4)) & 15u;
        values[i] = __fmul_rn(values_of_codes[code], absmax[round]);
      }
      store8(out + at, values);
    } else {
      for (std::int64_t i = at; i < at + kPerThread && i < num_weights; ++i) {
        const std::uint32_t code = weight.codes[i / 2] >> (i % 2 ? 0 : 4) & 15u;
        store_rounded(out + i, __fmul_rn(values_of_codes[code], absmax[round]));
      }
    }
  }
}

template <typename Out>
void launch_dequantize(const Nf4DequantizeArgs& args, const Queue& queue) {
  const std::int64_t num_weights = args.out.num_elements();
  const std::int64_t num_blocks = (num_weights + kRounds * kPerRound - 1) / (kRounds * kPerRound);
  Out* const out = args.out.as<Out>();
  const bool is_whole_words = is_aligned(out, 16) && is_aligned(args.weight.codes.data, 4);
  launch(nf4_dequantize_kernel<Out>,
         {"nf4_dequantize_kernel", dim3(static_cast<unsigned>(num_blocks)), dim3(kThreads), 0}, queue,
         nf4_source(args.weight), nf4_codebook(), kDynamicMap, num_weights, is_whole_words, out);
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
