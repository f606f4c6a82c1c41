// The widest float vector of the instruction set a kernel source is compiled for, with GCC's and clang's
// vector extensions: arithmetic is written once, the compiler flags choose the instructions. Everything is
// `static`; see the rule in kernels.h.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(PYFT_VECTOR_BYTES)
// given by the build: wider than the hardware's, it runs wide code on narrow processors (csrc/README.md)
#elif defined(__AVX512F__)
#define PYFT_VECTOR_BYTES 64
#elif defined(__AVX__)
#define PYFT_VECTOR_BYTES 32
#else
#define PYFT_VECTOR_BYTES 16
#endif

namespace pyft::cpu::PYFT_ISA {

typedef float FloatVector __attribute__((vector_size(PYFT_VECTOR_BYTES)));
typedef std::uint32_t BitsVector __attribute__((vector_size(PYFT_VECTOR_BYTES)));
typedef std::int32_t IntVector __attribute__((vector_size(PYFT_VECTOR_BYTES)));
constexpr int kLanes = PYFT_VECTOR_BYTES / 4;

static inline FloatVector load(const float* from) {
  FloatVector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

static inline void store(float* to, FloatVector vector) { std::memcpy(to, &vector, sizeof vector); }

static inline float sum_of_lanes(FloatVector vector) {
  float lanes[kLanes];
  store(lanes, vector);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

// dtype.h's rounding, a vector at a time.
static inline FloatVector round_to_bfloat16(FloatVector value) {
  const BitsVector bits = reinterpret_cast<BitsVector>(value);
  const BitsVector rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
  const BitsVector quiet = (bits | 0x00400000u) & 0xffff0000u;
  return reinterpret_cast<FloatVector>(value == value ? rounded : quiet);
}

// rows[i] lane j <-> rows[j] lane i: log2(kLanes) rounds that interleave row i with row i + kLanes / 2.
static inline void transpose(FloatVector (&rows)[kLanes]) {
#if defined(__GNUC__) && !defined(__clang__)
  IntVector low, high;
  for (int lane = 0; lane < kLanes; ++lane) {
    low[lane] = lane / 2 + lane % 2 * kLanes;
    high[lane] = low[lane] + kLanes / 2;
  }
#pragma GCC unroll 4
  for (int round = 1; round < kLanes; round *= 2) {
    FloatVector next[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = __builtin_shuffle(rows[i], rows[i + kLanes / 2], low);
      next[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + kLanes / 2], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
#else
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < i; ++j) {
      const float lane = rows[i][j];
      rows[i][j] = rows[j][i];
      rows[j][i] = lane;
    }
  }
#endif
}

}  // namespace pyft::cpu::PYFT_ISA
