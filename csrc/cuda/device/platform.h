// What every kernel source begins with: CUDA as nvcc has it, or, built with PYFT_EMULATION, its twin for the
// CPU; launching; shared memory. Kernels say these words and no others, so that one source serves both:
//
//   Queue(tensor, stream)                           the tensor's device is current as long as it lives
//   launch(kernel, shape, queue, arguments..)       checks the launch, names the kernel in errors
//   PYFT_SHARED(float, sums, 32)                    an array in shared memory
//   dynamic_shared()                                the bytes a launch asked for, aligned to 128
#pragma once

#include <cstddef>
#include <cstdint>

#include "pyft/error.h"
#include "pyft/tensor_ref.h"

#if defined(PYFT_EMULATION)
#include "emulation/cuda.h"

#define PYFT_SHARED(type, name, count)                                   \
  static const char name##_key = 0;                                      \
  type* const name = static_cast<type*>(::pyft::emulation::shared_array( \
      &name##_key, sizeof(type) * (count), alignof(type) < 16 ? 16 : alignof(type)))
#else
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#define PYFT_SHARED(type, name, count) __shared__ type name[count]
#endif

namespace pyft::cuda {

struct Launch {
  const char* kernel;  // its name, for errors
  dim3 grid, block;
  std::size_t shared_bytes;
};

#if defined(PYFT_EMULATION)

struct Queue {
  Queue(const TensorRef&, std::uintptr_t) {}
};

inline unsigned char* dynamic_shared() { return emulation::dynamic_shared(); }

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const Launch& shape, const Queue&, Arguments... arguments) {
  if (shape.grid.count() == 0) return;
  emulation::run({shape.grid, shape.block, shape.shared_bytes}, [&] { kernel(arguments...); });
}

#else

inline void check_cuda(const char* what, cudaError_t status) {
  if (status == cudaSuccess) return;
  fail(ErrorKind::kRuntime, what, ": CUDA error ", static_cast<int>(status), ": ",
       cudaGetErrorString(status));
}

// Makes a device current and, at the end of the scope, the one that was.
class DeviceGuard {
 public:
  DeviceGuard(const char* what, int device) {
    check_cuda(what, cudaGetDevice(&before_));
    check_cuda(what, cudaSetDevice(device));
  }
  ~DeviceGuard() { cudaSetDevice(before_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
};

struct Queue {
  Queue(const TensorRef& tensor, std::uintptr_t raw_stream)
      : guard("choosing the device", tensor.device_index),
        stream(reinterpret_cast<cudaStream_t>(raw_stream)) {}
  DeviceGuard guard;
  cudaStream_t stream;
};

__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char pyft_dynamic_shared[];
  return pyft_dynamic_shared;
}

inline void check_launch(const Launch& shape, cudaError_t status) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clears it: the next launch must not report it
  fail(ErrorKind::kRuntime, shape.kernel, " <<<(", shape.grid.x, ", ", shape.grid.y, ", ", shape.grid.z,
       "), ", shape.block.x, ", ", shape.shared_bytes, ">>>: CUDA error ", static_cast<int>(status), ": ",
       cudaGetErrorString(status));
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const Launch& shape, const Queue& queue, Arguments... arguments) {
  if (shape.grid.x * shape.grid.y * shape.grid.z == 0) return;
  if (shape.shared_bytes > (48u << 10)) {
    check_launch(shape, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             static_cast<int>(shape.shared_bytes)));
  }
  // clang-format off: in a header it takes the brackets apart
  kernel<<<shape.grid, shape.block, shape.shared_bytes, queue.stream>>>(arguments...);
  // clang-format on
  check_launch(shape, cudaGetLastError());
}

#endif

}  // namespace pyft::cuda
