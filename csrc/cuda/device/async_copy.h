// cp.async: copies from global to shared memory that go on while a thread computes. What they bring may be
// read after copy_async_wait, and by other threads after a barrier behind it.
#pragma once

#include "cuda/device/platform.h"

namespace pyft::cuda {

// 16 bytes, both addresses aligned to 16; only the first `bytes` are read, the others become zero. What is
// read is fetched into the L2 cache with the rest of its 128 bytes.
__device__ __forceinline__ void copy_async16(void* shared, const void* global, int bytes = 16) {
#if defined(PYFT_EMULATION)
  emulation::copy_async(shared, global, 16, bytes);
#else
  const std::uint32_t address = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(address), "l"(global),
               "r"(bytes)
               : "memory");
#endif
}

// The same for 4 bytes, through the L1 cache.
__device__ __forceinline__ void copy_async4(void* shared, const void* global, int bytes = 4) {
#if defined(PYFT_EMULATION)
  emulation::copy_async(shared, global, 4, bytes);
#else
  const std::uint32_t address = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(address), "l"(global), "r"(bytes)
               : "memory");
#endif
}

// Ends a group of copies.
__device__ __forceinline__ void copy_async_commit() {
#if defined(PYFT_EMULATION)
  emulation::commit_async();
#else
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

// Waits until at most the newest `num_left` groups are under way.
template <int num_left>
__device__ __forceinline__ void copy_async_wait() {
#if defined(PYFT_EMULATION)
  emulation::wait_async(num_left);
#else
  asm volatile("cp.async.wait_group %0;\n" ::"n"(num_left) : "memory");
#endif
}

}  // namespace pyft::cuda
