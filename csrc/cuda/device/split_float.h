// Products of a matrix with float32 ones, by a warp, from shared memory: C [16 x 8] += L [16 x 16] R [16 x
// 8], C lying in registers as mma.h draws it.
//
// Beside a bfloat16 matrix a float32 one lies as planes of bfloat16 that add up to it:
//
//     v = high + middle + low,   high = round(v), middle = round(v - high), low = round(v - high - middle)
//
// Three planes hold all 24 bits, two hold 16. A product of exact bfloat16 values with three planes is as good
// as one in float32, and still costs less than the memory traffic for ranks up to about 32. Infinite values
// become NaN. Beside a float32 matrix there is one plane, and products are fused multiply-adds.
#pragma once

#include "cuda/device/memory.h"
#include "cuda/device/mma.h"

namespace pyft::cuda {

// A lane of mma.h's drawings.
__device__ __forceinline__ int lane_of_warp() { return static_cast<int>(threadIdx.x) % 32; }
__device__ __forceinline__ int warp_of_block() { return static_cast<int>(threadIdx.x) / 32; }

// How many planes a float32 matrix has beside one of T, and from one row to the next of `columns` elements:
// 16 bytes more than they need, so that eight rows lie in different banks.
template <typename T>
__host__ __device__ constexpr int num_planes(int wanted) {
  return sizeof(T) == 4 ? 1 : wanted;
}
template <typename T>
__host__ __device__ constexpr int padded(int columns) {
  return columns + 16 / static_cast<int>(sizeof(T));
}

template <int kPlanes>
__device__ __forceinline__ void store_split(float* at, int, float value) {
  *at = value;
}
template <int kPlanes>
__device__ __forceinline__ void store_split(__nv_bfloat16* at, int plane, float value) {
#pragma unroll
  for (int i = 0; i < kPlanes; ++i) {
    at[i * plane] = __float2bfloat16_rn(value);
    value -= __bfloat162float(at[i * plane]);
  }
}

// L: `at` is row 0, column 0 as stored; with `transposed` it is stored column by column.
template <typename T, int kPlanes>
struct Left;

template <int kPlanes>
struct Left<__nv_bfloat16, kPlanes> {
  std::uint32_t words[kPlanes][4];

  template <bool transposed>
  __device__ __forceinline__ void load(const __nv_bfloat16* at, int stride, int plane) {
    const int lane = lane_of_warp(), inner = lane % 8, second = lane / 8 % 2 * 8, third = lane / 16 * 8;
    at += transposed ? (inner + third) * stride + second : (inner + second) * stride + third;
#pragma unroll
    for (int i = 0; i < kPlanes; ++i) load_matrices<transposed>(words[i], at + i * plane);
  }
};

template <int kPlanes>
struct Left<float, kPlanes> {
  const float* at;
  int row_step, k_step;

  template <bool transposed>
  __device__ __forceinline__ void load(const float* from, int stride, int) {
    row_step = transposed ? 1 : stride;
    k_step = transposed ? stride : 1;
    at = from + lane_of_warp() / 4 * row_step;
  }
};

// Two R, one after the other along k or, else, along columns. Stored column by column, or with `transposed`
// row by row.
template <typename T, int kPlanes>
struct Right;

template <int kPlanes>
struct Right<__nv_bfloat16, kPlanes> {
  std::uint32_t words[kPlanes][4];

  template <bool transposed, bool along_k>
  __device__ __forceinline__ void load(const __nv_bfloat16* at, int stride, int plane) {
    const int lane = lane_of_warp(), matrix = lane / 8;
    const int k = along_k ? 8 * matrix : 8 * (matrix % 2), column = along_k ? 0 : 8 * (matrix / 2);
    at += transposed ? (k + lane % 8) * stride + column : (column + lane % 8) * stride + k;
#pragma unroll
    for (int i = 0; i < kPlanes; ++i) load_matrices<transposed>(words[i], at + i * plane);
  }
};

template <int kPlanes>
struct Right<float, kPlanes> {
  const float* at;
  int column_step, k_step, next;

  template <bool transposed, bool along_k>
  __device__ __forceinline__ void load(const float* from, int stride, int) {
    column_step = transposed ? 1 : stride;
    k_step = transposed ? stride : 1;
    next = along_k ? 16 * k_step : 8 * column_step;
    at = from + lane_of_warp() % 4 * 2 * column_step;
  }
};

// C += L R[which]. Planes i and j meet where their product counts: i + j below the number of planes of R.
template <int kLeftPlanes, int kRightPlanes>
__device__ __forceinline__ void multiply(float (&c)[4], const Left<__nv_bfloat16, kLeftPlanes>& left,
                                         const Right<__nv_bfloat16, kRightPlanes>& right, int which) {
#pragma unroll
  for (int i = 0; i < kLeftPlanes; ++i) {
#pragma unroll
    for (int j = 0; j < kRightPlanes - i; ++j) {
      const std::uint32_t b[2] = {right.words[j][2 * which], right.words[j][2 * which + 1]};
      mma_bf16(c, left.words[i], b);
    }
  }
}

template <int kLeftPlanes, int kRightPlanes>
__device__ __forceinline__ void multiply(float (&c)[4], const Left<float, kLeftPlanes>& left,
                                         const Right<float, kRightPlanes>& right, int which) {
  const float* const column = right.at + which * right.next;
  float sums[4] = {};  // of 16 products before they meet the others: the error of long sums grows slower
#pragma unroll 4
  for (int k = 0; k < 16; ++k) {
    const float upper = left.at[k * left.k_step], lower = left.at[k * left.k_step + 8 * left.row_step];
    const float first = column[k * right.k_step], second = column[k * right.k_step + right.column_step];
    sums[0] = __fmaf_rn(upper, first, sums[0]);
    sums[1] = __fmaf_rn(upper, second, sums[1]);
    sums[2] = __fmaf_rn(lower, first, sums[2]);
    sums[3] = __fmaf_rn(lower, second, sums[3]);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) c[i] += sums[i];
}

}  // namespace pyft::cuda
