// The widest float vector of the instruction set a kernel source is compiled for, with GCC's and clang's
// vector extensions: arithmetic is written once, the compiler flags choose the instructions. Everything is
// `static`; see the rule in kernels.h.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#define PYFT_VECTOR_BYTES 64
#elif defined(__AVX__)
#define PYFT_VECTOR_BYTES 32
#else
#define PYFT_VECTOR_BYTES 16
#endif

namespace pyft::cpu::PYFT_ISA {

typedef float FloatVector __attribute__((vector_size(PYFT_VECTOR_BYTES)));
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

}  // namespace pyft::cpu::PYFT_ISA
