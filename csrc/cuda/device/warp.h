// Reductions over a warp and over a block. The order of the sums is fixed: the same inputs give the same
// bits.
#pragma once

#include "cuda/device/platform.h"

namespace pyft::cuda {

constexpr int kWarpSize = 32;
constexpr std::uint32_t kAllLanes = 0xffffffffu;

// How many threads a block has for `count` pieces of work: whole warps, at least one and at most `most`.
inline unsigned whole_warps(std::int64_t count, int most) {
  const std::int64_t rounded = (count + kWarpSize - 1) / kWarpSize * kWarpSize;
  return static_cast<unsigned>(rounded < kWarpSize ? kWarpSize : rounded < most ? rounded : most);
}

// Each of `width` neighbouring lanes, a power of two, gets the result of all.
template <int width = kWarpSize, typename T, typename Combine>
__device__ __forceinline__ T reduce_lanes(T value, Combine combine) {
  for (int distance = width / 2; distance > 0; distance /= 2) {
    value = combine(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  return value;
}

// Every thread of a block of whole warps, at most 32 of them, gets the result of all. `exchange` is shared
// memory for 32 values; the threads may write it again after their next barrier.
template <typename T, typename Combine>
__device__ __forceinline__ T reduce_block(T value, T neutral, T* exchange, Combine combine) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize,
            warp = static_cast<int>(threadIdx.x) / kWarpSize;
  value = reduce_lanes(value, combine);
  if (lane == 0) exchange[warp] = value;
  __syncthreads();
  value = lane < static_cast<int>(blockDim.x) / kWarpSize ? exchange[lane] : neutral;
  return reduce_lanes(value, combine);
}

struct Sum {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};

// Of two numbers; a NaN may be lost.
struct Max {
  __device__ __forceinline__ float operator()(float a, float b) const { return a > b ? a : b; }
};

// NaN if either is.
struct MaxOrNan {
  __device__ __forceinline__ float operator()(float a, float b) const { return a != a || a > b ? a : b; }
};

}  // namespace pyft::cuda
