// SwiGLU entry by entry, and its gradient; ops/swiglu.h has the formulas.
//
//   swiglu_kernel, swiglu_backward_kernel    a thread to each run of eight entries, 256 threads to a block
//
// With e = exp(-|gate|), s and 1 - s are 1 / (1 + e) and e / (1 + e), or the other way round: neither
// overflows nor cancels. Memory bound: every entry is read once and written once, and a run is read whole
// before it is written, so outputs may be inputs. No shared memory. Equal shapes and contiguity are checked
// in dispatch/; the last run, and tensors that do not begin at 16 bytes, are read entry by entry.
#include "cuda/device/memory.h"
#include "cuda/operations.h"

namespace pyft::cuda {
namespace {

constexpr int kThreads = 256;

struct Sigmoid {
  float value, complement;
};

__device__ __forceinline__ Sigmoid sigmoid(float a) {
  const float e = expf(a < 0.0f ? a : -a), large = 1.0f / (1.0f + e), small = e * large;
  return a < 0.0f ? Sigmoid{small, large} : Sigmoid{large, small};
}

__device__ __forceinline__ std::int64_t first_of_thread() {
  return 8 * (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    swiglu_kernel(const T* gate, const T* up, std::int64_t n, bool is_whole_words, T* y) {
  const std::int64_t first = first_of_thread();
  if (first >= n) return;
  float a[8], u[8];
  load_run(gate, first, n, is_whole_words, a);
  load_run(up, first, n, is_whole_words, u);
#pragma unroll
  for (int i = 0; i < 8; ++i) u[i] *= a[i] * sigmoid(a[i]).value;
  store_run(y, first, n, is_whole_words, u);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    swiglu_backward_kernel(const T* grad_y, const T* gate, const T* up, std::int64_t n, bool is_whole_words,
                           T* grad_gate, T* grad_up) {
  const std::int64_t first = first_of_thread();
  if (first >= n) return;
  float g[8], a[8], u[8];
  load_run(grad_y, first, n, is_whole_words, g);
  load_run(gate, first, n, is_whole_words, a);
  load_run(up, first, n, is_whole_words, u);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const Sigmoid s = sigmoid(a[i]);
    const float shared = g[i] * s.value;
    u[i] *= shared * (1.0f + a[i] * s.complement);
    a[i] *= shared;
  }
  store_run(grad_gate, first, n, is_whole_words, u);
  store_run(grad_up, first, n, is_whole_words, a);
}

Launch launch_of(const char* kernel, std::int64_t n) {
  return {kernel, dim3(static_cast<unsigned>((n + 8 * kThreads - 1) / (8 * kThreads))), dim3(kThreads), 0};
}

bool are_aligned(std::initializer_list<const TensorRef*> tensors) {
  bool all = true;
  for (const TensorRef* tensor : tensors) all = all && is_aligned(tensor->data, 16);
  return all;
}

template <typename T>
void launch_forward(const SwigluArgs& args, const Queue& queue) {
  const std::int64_t n = args.gate.num_elements();
  launch(swiglu_kernel<T>, launch_of("swiglu_kernel", n), queue, args.gate.as<const T>(),
         args.up.as<const T>(), n, are_aligned({&args.gate, &args.up, &args.y}), args.y.as<T>());
}

template <typename T>
void launch_backward(const SwigluBackwardArgs& args, const Queue& queue) {
  const std::int64_t n = args.gate.num_elements();
  launch(swiglu_backward_kernel<T>, launch_of("swiglu_backward_kernel", n), queue, args.grad_y.as<const T>(),
         args.gate.as<const T>(), args.up.as<const T>(), n,
         are_aligned({&args.grad_y, &args.gate, &args.up, &args.grad_gate, &args.grad_up}),
         args.grad_gate.as<T>(), args.grad_up.as<T>());
}

}  // namespace

void swiglu(const SwigluArgs& args, std::uintptr_t stream) {
  const Queue queue(args.gate, stream);
  if (args.gate.dtype == DType::kBFloat16) {
    launch_forward<__nv_bfloat16>(args, queue);
  } else {
    launch_forward<float>(args, queue);
  }
}

void swiglu_backward(const SwigluBackwardArgs& args, std::uintptr_t stream) {
  const Queue queue(args.gate, stream);
  if (args.gate.dtype == DType::kBFloat16) {
    launch_backward<__nv_bfloat16>(args, queue);
  } else {
    launch_backward<float>(args, queue);
  }
}

}  // namespace pyft::cuda
