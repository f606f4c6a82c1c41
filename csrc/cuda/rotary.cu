// The rotary embedding of queries and keys in one launch; ops/rotary.h has the formulas.
//
//   rotary_kernel    a block to each token; a thread takes a run of eight entries i of a head's lower half
//                    and the run i + h of its upper half, h = R / 2, or a run of the copied entries
//
//   one head             | low  0 .. h-1 | high  h .. R-1 | copied  R .. D-1 |
//   a block, in order    | head 0: run 0 .. r-1 | head 1: run 0 .. r-1 | .. |    query heads, then keys'
//
// Memory bound: heads are read once and written once; a token's angles come from the cache. No shared memory.
// Shapes, and that a head's entries lie side by side, are checked in dispatch/; other strides are free, and
// where a run does not begin at 16 bytes its entries are read one by one.
#include <algorithm>

#include "cuda/device/memory.h"
#include "cuda/operations.h"

namespace pyft::cuda {
namespace {

constexpr int kMaxThreads = 256;

// [B, heads, T, D] in elements: the distances between rows, heads and tokens.
template <typename T>
struct Heads {
  const T* in;
  T* out;
  std::int64_t in_strides[3], out_strides[3];
};

template <typename T>
struct Tables {
  const T *cos, *sin;
  std::int64_t cos_strides[2], sin_strides[2];  // between rows and tokens
};

struct Sizes {
  int num_tokens, num_query_heads, num_heads;  // of a row; num_heads counts keys too
  int width, half, half_runs, runs;            // D, h, runs in a half, items of a head
  bool transposed, is_whole_words;
};

template <typename T>
__device__ __forceinline__ void rotate_run(const T* x, T* y, const T* cos, const T* sin, int first,
                                           const Sizes& sizes) {
  const int half = sizes.half;
  const bool whole = sizes.is_whole_words;
  float low[8], high[8], low_cos[8], high_cos[8], low_sin[8], high_sin[8];
  load_run(x, first, half, whole, low);
  load_run(x + half, first, half, whole, high);
  load_run(cos, first, half, whole, low_cos);
  load_run(cos + half, first, half, whole, high_cos);
  // The transpose takes the sines of the other half, and changes their sign.
  load_run(sizes.transposed ? sin + half : sin, first, half, whole, low_sin);
  load_run(sizes.transposed ? sin : sin + half, first, half, whole, high_sin);
  const float sign = sizes.transposed ? -1.0f : 1.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float a = low[i], b = high[i];
    low[i] = a * low_cos[i] - b * (low_sin[i] * sign);
    high[i] = b * high_cos[i] + a * (high_sin[i] * sign);
  }
  store_run(y, first, half, whole, low);
  store_run(y + half, first, half, whole, high);
}

template <typename T>
__global__ void __launch_bounds__(kMaxThreads)
    rotary_kernel(Heads<T> q, Heads<T> k, Tables<T> tables, Sizes sizes) {
  const std::int64_t row = blockIdx.x / static_cast<unsigned>(sizes.num_tokens);
  const std::int64_t token = blockIdx.x % static_cast<unsigned>(sizes.num_tokens);
  const T* const cos = tables.cos + row * tables.cos_strides[0] + token * tables.cos_strides[1];
  const T* const sin = tables.sin + row * tables.sin_strides[0] + token * tables.sin_strides[1];
  const int num_items = sizes.num_heads * sizes.runs;
  for (int item = static_cast<int>(threadIdx.x); item < num_items; item += static_cast<int>(blockDim.x)) {
    const bool is_query = item / sizes.runs < sizes.num_query_heads;
    const std::int64_t head = item / sizes.runs - (is_query ? 0 : sizes.num_query_heads);
    const Heads<T>& heads = is_query ? q : k;
    const T* const x =
        heads.in + row * heads.in_strides[0] + head * heads.in_strides[1] + token * heads.in_strides[2];
    T* const y =
        heads.out + row * heads.out_strides[0] + head * heads.out_strides[1] + token * heads.out_strides[2];
    const int run = item % sizes.runs;
    if (run < sizes.half_runs) {
      rotate_run(x, y, cos, sin, 8 * run, sizes);
    } else {
      float values[8];
      const int first = 2 * sizes.half + 8 * (run - sizes.half_runs);
      load_run(x, first, sizes.width, sizes.is_whole_words, values);
      store_run(y, first, sizes.width, sizes.is_whole_words, values);
    }
  }
}

template <typename T>
Heads<T> heads_of(const TensorRef& in, const TensorRef& out) {
  return {in.as<const T>(),
          out.as<T>(),
          {in.strides[0], in.strides[1], in.strides[2]},
          {out.strides[0], out.strides[1], out.strides[2]}};
}

// Every run of eight of the tensor begins at a multiple of 16 bytes.
bool has_whole_words(const TensorRef& tensor) {
  bool all = is_aligned(tensor.data, 16);
  for (int i = 0; i + 1 < tensor.num_dims; ++i) {
    all = all && (tensor.shape[i] == 1 || tensor.strides[i] % 8 == 0);
  }
  return all;
}

template <typename T>
void launch_rotary(const RotaryArgs& args, const Queue& queue) {
  const TensorRef &q = args.q, &cos = args.cos, &sin = args.sin;
  Sizes sizes{};
  sizes.num_tokens = static_cast<int>(q.shape[2]);
  sizes.num_query_heads = static_cast<int>(q.shape[1]);
  sizes.num_heads = static_cast<int>(q.shape[1] + args.k.shape[1]);
  sizes.width = static_cast<int>(q.shape[3]);
  sizes.half = static_cast<int>(cos.shape[2] / 2);
  sizes.half_runs = (sizes.half + 7) / 8;
  sizes.runs = sizes.half_runs + (sizes.width - 2 * sizes.half + 7) / 8;
  sizes.transposed = args.transposed;
  sizes.is_whole_words = sizes.half % 8 == 0;
  for (const TensorRef* tensor : {&q, &args.k, &cos, &sin, &args.rotated_q, &args.rotated_k}) {
    sizes.is_whole_words = sizes.is_whole_words && has_whole_words(*tensor);
  }
  // As many threads as share the items evenly, in whole warps.
  const int num_items = sizes.num_heads * sizes.runs;
  const int num_rounds = std::max((num_items + kMaxThreads - 1) / kMaxThreads, 1);
  const int num_threads = (std::max((num_items + num_rounds - 1) / num_rounds, 1) + 31) / 32 * 32;
  const Tables<T> tables{cos.as<const T>(),
                         sin.as<const T>(),
                         {cos.strides[0], cos.strides[1]},
                         {sin.strides[0], sin.strides[1]}};
  const std::int64_t num_blocks = num_items == 0 ? 0 : q.shape[0] * q.shape[2];
  launch(
      rotary_kernel<T>,
      {"rotary_kernel", dim3(static_cast<unsigned>(num_blocks)), dim3(static_cast<unsigned>(num_threads)), 0},
      queue, heads_of<T>(q, args.rotated_q), heads_of<T>(args.k, args.rotated_k), tables, sizes);
}

}  // namespace

void rotary(const RotaryArgs& args, std::uintptr_t stream) {
  const Queue queue(args.q, stream);
  if (args.q.dtype == DType::kBFloat16) {
    launch_rotary<__nv_bfloat16>(args, queue);
  } else {
    launch_rotary<float>(args, queue);
  }
}

}  // namespace pyft::cuda
