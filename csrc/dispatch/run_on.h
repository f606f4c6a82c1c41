// Runs an operation, whose arguments have been checked, on the device its tensors are on.
#pragma once

#include "cpu/operations.h"
#include "pyft/ops.h"
#include "validate.h"

#if defined(PYFT_HAS_CUDA) || defined(PYFT_EMULATION)
#include "cuda/operations.h"
#define PYFT_CUDA_KERNEL(op) cuda::op
#else
#define PYFT_CUDA_KERNEL(op) nullptr
#endif

namespace pyft {

#if defined(PYFT_EMULATION)
// Tests: CUDA kernels work on tensors of the CPU, and nothing else does.
inline constexpr bool kIsEmulated = true;
#else
inline constexpr bool kIsEmulated = false;
#endif

template <typename Args>
struct CpuKernel {
  using Type = void (*)(const Args&, int num_threads);
};

template <typename Args>
struct CudaKernel {
  using Type = void (*)(const Args&, std::uintptr_t stream);
};

// Runs an operation on the device of its tensors. A function is null where that device has no such kernel.
template <typename Args>
void run_on(const char* op, DeviceType device, const Args& args, const ExecutionContext& context,
            typename CpuKernel<Args>::Type on_cpu, typename CudaKernel<Args>::Type on_cuda) {
  if (device == DeviceType::kCpu && !kIsEmulated) {
    check(on_cpu != nullptr, op, ": the tensors are on the cpu, this operation has only a cuda kernel");
    return on_cpu(args, context.num_threads);
  }
  check(on_cuda != nullptr, op, ": the tensors are on cuda, this operation has only a cpu kernel here");
  on_cuda(args, context.stream);
}

}  // namespace pyft
