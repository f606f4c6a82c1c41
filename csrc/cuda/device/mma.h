// Tensor cores by mma.sync, and the loads that fit them. lane = 4 g + t:
//
//   A 16 x 16   a[0] row g    columns 2t, 2t+1     a[2] row g    columns 2t+8, 2t+9      two bfloat16 to a
//               a[1] row g+8  columns 2t, 2t+1     a[3] row g+8  columns 2t+8, 2t+9      word, the first low
//   B 16 x 8    b[0] rows 2t, 2t+1  column g       b[1] rows 2t+8, 2t+9  column g
//   C 16 x 8    c[0], c[1] row g  columns 2t, 2t+1     c[2], c[3] row g+8  columns 2t, 2t+1      float32
#pragma once

#include "cuda/device/platform.h"

#if defined(PYFT_EMULATION)
#include "emulation/mma.h"
#endif

namespace pyft::cuda {

// C += A B, every product exact, sums in float32. All lanes of the warp.
__device__ __forceinline__ void mma_bf16(float (&c)[4], const std::uint32_t (&a)[4],
                                         const std::uint32_t (&b)[2]) {
#if defined(PYFT_EMULATION)
  emulation::mma_bf16(c, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Four 8 x 8 matrices of bfloat16 from shared memory: lane l gives the address of row l % 8 of matrix l / 8,
// 16 bytes; words[i] is row g, columns 2t and 2t+1 of matrix i, or with `transposed` rows 2t and 2t+1 of
// column g.
template <bool transposed>
__device__ __forceinline__ void load_matrices(std::uint32_t (&words)[4], const void* row) {
#if defined(PYFT_EMULATION)
  emulation::load_matrices(words, row, transposed);
#else
  const std::uint32_t address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
  }
#endif
}

// Two values rounded to bfloat16, the first in the low half.
__device__ __forceinline__ std::uint32_t pack_bf16(float low, float high) {
#if defined(PYFT_EMULATION)
  return static_cast<std::uint32_t>(float_to_bfloat16(high)) << 16 | float_to_bfloat16(low);
#else
  std::uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(word) : "f"(high), "f"(low));
  return word;
#endif
}

}  // namespace pyft::cuda
