// What a kernel source takes from nvcc, for g++ and the emulation: qualifiers, vector types, built-in
// variables and the functions that pyft's kernels use. Only cuda/device/platform.h includes it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "emulation/async.h"
#include "emulation/block.h"
#include "pyft/dtype.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

using dim3 = pyft::emulation::Dim3;
#define threadIdx (::pyft::emulation::thread_index())
#define blockIdx (::pyft::emulation::block_index())
#define blockDim (::pyft::emulation::block_shape())
#define gridDim (::pyft::emulation::grid_shape())

using cudaStream_t = void*;

struct alignas(8) uint2 {
  std::uint32_t x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) uint4 {
  std::uint32_t x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint2 make_uint2(std::uint32_t x, std::uint32_t y) { return {x, y}; }
inline uint4 make_uint4(std::uint32_t x, std::uint32_t y, std::uint32_t z, std::uint32_t w) {
  return {x, y, z, w};
}
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// Single operations that the compiler must not contract; here -ffp-contract=off holds for all.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __uint_as_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline std::uint32_t __float_as_uint(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

struct __nv_bfloat16 {
  pyft::BFloat16Bits bits;
};
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return {pyft::float_to_bfloat16(value)}; }
inline float __bfloat162float(__nv_bfloat16 value) { return pyft::bfloat16_to_float(value.bits); }

inline void __syncthreads() { pyft::emulation::synchronize_block(); }

inline void __syncwarp(std::uint32_t mask = 0xffffffffu) {
  char nothing;
  pyft::emulation::collective("__syncwarp", mask, &nothing, [](void* const*, std::uint32_t) {});
}

namespace pyft::emulation {

template <typename T>
struct Shuffle {
  T value, result;
  int source;  // lane
};

template <typename T>
T shuffle(const char* name, std::uint32_t mask, T value, int source) {
  Shuffle<T> own{value, value, source};
  collective(name, mask, &own, [](Operands all, std::uint32_t) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      if (!all[lane]) continue;
      auto* const to = static_cast<Shuffle<T>*>(all[lane]);
      // What a lane outside the mask holds is undefined on hardware: its own value is as wrong as any.
      if (const auto* from = static_cast<const Shuffle<T>*>(all[to->source])) to->result = from->value;
    }
  });
  return own.result;
}

}  // namespace pyft::emulation

template <typename T>
T __shfl_sync(std::uint32_t mask, T value, int source) {
  return pyft::emulation::shuffle("__shfl_sync", mask, value, source & 31);
}
template <typename T>
T __shfl_xor_sync(std::uint32_t mask, T value, int distance) {
  return pyft::emulation::shuffle("__shfl_xor_sync", mask, value, pyft::emulation::lane() ^ distance);
}
template <typename T>
T __shfl_down_sync(std::uint32_t mask, T value, int distance) {
  const int lane = pyft::emulation::lane();
  const int source = lane + distance;
  return pyft::emulation::shuffle("__shfl_down_sync", mask, value, source < 32 ? source : lane);
}

inline std::uint32_t __ballot_sync(std::uint32_t mask, int predicate) {
  struct Vote {
    bool is_true;
    std::uint32_t result;
  } own{predicate != 0, 0};
  pyft::emulation::collective("__ballot_sync", mask, &own, [](void* const* all, std::uint32_t) {
    std::uint32_t votes = 0;
    for (int lane = 0; lane < 32; ++lane)
      if (all[lane] && static_cast<Vote*>(all[lane])->is_true) votes |= 1u << lane;
    for (int lane = 0; lane < 32; ++lane)
      if (all[lane]) static_cast<Vote*>(all[lane])->result = votes;
  });
  return own.result;
}
