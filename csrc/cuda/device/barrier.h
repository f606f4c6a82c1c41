// mbarrier: a barrier in 8 bytes of shared memory at which threads arrive without waiting, and which others
// wait for without arriving. A phase ends with its `count` arrivals and the next begins; who waits names the
// parity of the phase, 0 first. What a thread did before it arrived is seen by who has waited.
//
//     full[stage]    all threads, each when its copies into the stage have come      waits: who reads it
//     empty[stage]   all readers                                                     waits: who refills it,
//                                                        the first time for phase 1, which counts as ended
#pragma once

#include "cuda/device/platform.h"

namespace pyft::cuda {

using Barrier = std::uint64_t;

#if !defined(PYFT_EMULATION)
__device__ __forceinline__ std::uint32_t barrier_address(Barrier* barrier) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(barrier));
}
#endif

// By one thread; a __syncthreads must come before its use.
__device__ __forceinline__ void barrier_init(Barrier* barrier, int count) {
#if defined(PYFT_EMULATION)
  emulation::init_barrier(barrier, count);
#else
  asm volatile("mbarrier.init.shared.b64 [%0], %1;\n" ::"r"(barrier_address(barrier)), "r"(count) : "memory");
#endif
}

__device__ __forceinline__ void barrier_arrive(Barrier* barrier) {
#if defined(PYFT_EMULATION)
  emulation::arrive_barrier(barrier);
#else
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];\n" ::"r"(barrier_address(barrier)) : "memory");
#endif
}

// Arrives when all cp.async copies that this thread has begun are done; the thread goes on.
__device__ __forceinline__ void barrier_arrive_after_copies(Barrier* barrier) {
#if defined(PYFT_EMULATION)
  emulation::arrive_barrier_after_copies(barrier);
#else
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];\n" ::"r"(barrier_address(barrier))
               : "memory");
#endif
}

// Returns when the phase of this parity, the current one or the one before, has ended.
__device__ __forceinline__ void barrier_wait(Barrier* barrier, int parity) {
#if defined(PYFT_EMULATION)
  emulation::wait_barrier(barrier, parity);
#else
  std::uint32_t has_ended;
  do {
    asm volatile(
        "{\n.reg .pred ended;\n"
#if __CUDA_ARCH__ >= 900
        "mbarrier.try_wait.parity.shared.b64 ended, [%1], %2;\n"
#else
        "mbarrier.test_wait.parity.shared.b64 ended, [%1], %2;\n"
#endif
        "selp.u32 %0, 1, 0, ended;\n}\n"
        : "=r"(has_ended)
        : "r"(barrier_address(barrier)), "r"(parity)
        : "memory");
  } while (!has_ended);
#endif
}

}  // namespace pyft::cuda
