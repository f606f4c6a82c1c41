// Eight elements at a time: 32 bytes of float32, 16 of bfloat16.
#pragma once

#include "cuda/device/platform.h"

namespace pyft::cuda {

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ __forceinline__ void store_rounded(float* to, float value) { *to = value; }
__device__ __forceinline__ void store_rounded(__nv_bfloat16* to, float value) {
  *to = __float2bfloat16_rn(value);
}

// `from` and `to` are multiples of 16 bytes.
__device__ __forceinline__ void load8(const float* from, float (&values)[8]) {
  const float4* const quads = reinterpret_cast<const float4*>(from);
  const float4 low = quads[0], high = quads[1];
  values[0] = low.x, values[1] = low.y, values[2] = low.z, values[3] = low.w;
  values[4] = high.x, values[5] = high.y, values[6] = high.z, values[7] = high.w;
}
__device__ __forceinline__ void load8(const __nv_bfloat16* from, float (&values)[8]) {
  const uint4 bits = *reinterpret_cast<const uint4*>(from);
  const std::uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    values[2 * i] = __uint_as_float(words[i] << 16);
    values[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

__device__ __forceinline__ void store8(float* to, const float (&values)[8]) {
  float4* const quads = reinterpret_cast<float4*>(to);
  quads[0] = make_float4(values[0], values[1], values[2], values[3]);
  quads[1] = make_float4(values[4], values[5], values[6], values[7]);
}
__device__ __forceinline__ void store8(__nv_bfloat16* to, const float (&values)[8]) {
  __nv_bfloat16 rounded[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) rounded[i] = __float2bfloat16_rn(values[i]);
  *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(rounded);
}

// The same at any address, and at a row's end: elements [first, first + 8) of a row of `width`, zeros behind
// its end. `is_whole_words`: the row begins at a multiple of 16 bytes.
template <typename T>
__device__ __forceinline__ void load_run(const T* row, std::int64_t first, std::int64_t width,
                                         bool is_whole_words, float (&values)[8]) {
  if (is_whole_words && first + 8 <= width) {
    load8(row + first, values);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = first + i < width ? to_float(row[first + i]) : 0.0f;
  }
}
template <typename T>
__device__ __forceinline__ void store_run(T* row, std::int64_t first, std::int64_t width, bool is_whole_words,
                                          const float (&values)[8]) {
  if (is_whole_words && first + 8 <= width) {
    store8(row + first, values);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (first + i < width) store_rounded(row + first + i, values[i]);
    }
  }
}

inline bool is_aligned(const void* pointer, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

}  // namespace pyft::cuda
