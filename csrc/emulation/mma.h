// The twins of cuda/device/mma.h's tensor core instructions, which draws the fragments.
#pragma once

#include <cstdint>
#include <cstring>

#include "emulation/block.h"
#include "pyft/dtype.h"

namespace pyft::emulation {

inline float half_of(std::uint32_t word, int half) {
  return bfloat16_to_float(static_cast<BFloat16Bits>(word >> 16 * half));
}

inline void mma_bf16(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  struct Fragments {
    float* c;
    const std::uint32_t *a, *b;
  } own{c, a, b};
  collective("mma", 0xffffffffu, &own, [](Operands all, std::uint32_t) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const auto& part = *static_cast<const Fragments*>(all[lane]);
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 4; ++i) {
        for (int half = 0; half < 2; ++half)
          a[g + i % 2 * 8][2 * t + i / 2 * 8 + half] = half_of(part.a[i], half);
      }
      for (int i = 0; i < 2; ++i) {
        for (int half = 0; half < 2; ++half) b[2 * t + 8 * i + half][g] = half_of(part.b[i], half);
      }
    }
    for (int lane = 0; lane < kWarpSize; ++lane) {
      float* const c = static_cast<const Fragments*>(all[lane])->c;
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 4; ++i) {
        double sum = c[i];
        for (int k = 0; k < 16; ++k)
          sum += static_cast<double>(a[g + i / 2 * 8][k]) * static_cast<double>(b[k][2 * t + i % 2]);
        c[i] = static_cast<float>(sum);
      }
    }
  });
}

inline void load_matrices(std::uint32_t (&words)[4], const void* row, bool transposed) {
  struct Rows {
    std::uint32_t* words;
    const void* row;
    bool transposed;
  } own{words, row, transposed};
  collective("ldmatrix", 0xffffffffu, &own, [](Operands all, std::uint32_t) {
    BFloat16Bits matrices[4][8][8];
    for (int lane = 0; lane < kWarpSize; ++lane)
      std::memcpy(matrices[lane / 8][lane % 8], static_cast<const Rows*>(all[lane])->row, 16);
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const auto& part = *static_cast<const Rows*>(all[lane]);
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 4; ++i) {
        const BFloat16Bits low = part.transposed ? matrices[i][2 * t][g] : matrices[i][g][2 * t];
        const BFloat16Bits high = part.transposed ? matrices[i][2 * t + 1][g] : matrices[i][g][2 * t + 1];
        part.words[i] = static_cast<std::uint32_t>(high) << 16 | low;
      }
    }
  });
}

}  // namespace pyft::emulation
