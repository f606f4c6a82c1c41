// The widest float vector of the instruction set a kernel source is compiled for, with GCC's and clang's
// vector extensions: arithmetic is written once, the compiler flags choose the instructions. Everything is
// `static`; see the rule in kernels.h.
#pragma once

#ifdef __AVX2__
#include <immintrin.h>
#endif

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

// A vector can look up eight or sixteen floats: GCC has a shuffle by run-time indices, clang has none.
#if defined(__GNUC__) && !defined(__clang__) && PYFT_VECTOR_BYTES >= 32
#define PYFT_VECTOR_LOOK_UP
#endif

namespace pyft::cpu::PYFT_ISA {

typedef float FloatVector __attribute__((vector_size(PYFT_VECTOR_BYTES)));
typedef std::uint32_t BitsVector __attribute__((vector_size(PYFT_VECTOR_BYTES)));
typedef std::int32_t IntVector __attribute__((vector_size(PYFT_VECTOR_BYTES)));
constexpr int kLanes = PYFT_VECTOR_BYTES / 4;

// A whole vector of whatever lies at `from`.
static inline FloatVector load_bits(const void* from) {
  FloatVector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

static inline FloatVector load(const float* from) { return load_bits(from); }

static inline void store(float* to, FloatVector vector) { std::memcpy(to, &vector, sizeof vector); }

// kLanes unsigned integers of 8 or 16 bits, one to a lane. Intrinsics, because GCC takes its own
// __builtin_convertvector of these apart.
static inline IntVector load_wide(const std::uint8_t* from) {
#if defined(__AVX512F__) && PYFT_VECTOR_BYTES == 64
  return reinterpret_cast<IntVector>(
      _mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#elif defined(__AVX2__) && PYFT_VECTOR_BYTES == 32
  return reinterpret_cast<IntVector>(_mm256_cvtepu8_epi32(_mm_loadu_si64(from)));
#else
  IntVector wide;
  for (int lane = 0; lane < kLanes; ++lane) wide[lane] = from[lane];
  return wide;
#endif
}

static inline IntVector load_wide(const std::uint16_t* from) {
#if defined(__AVX512F__) && PYFT_VECTOR_BYTES == 64
  return reinterpret_cast<IntVector>(
      _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#elif defined(__AVX2__) && PYFT_VECTOR_BYTES == 32
  return reinterpret_cast<IntVector>(
      _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#else
  IntVector wide;
  for (int lane = 0; lane < kLanes; ++lane) wide[lane] = from[lane];
  return wide;
#endif
}

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

// The same where a NaN can only be the quiet one without a payload, which the addition leaves a NaN.
static inline FloatVector round_plain_to_bfloat16(FloatVector value) {
  const BitsVector bits = reinterpret_cast<BitsVector>(value);
  return reinterpret_cast<FloatVector>((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u);
}

#if defined(__GNUC__) && !defined(__clang__)
// Swaps the upper kWidth lanes of each group of 2 kWidth in rows[i] with the lower ones in rows[i + kWidth].
template <int kWidth>
static inline void swap_blocks(FloatVector (&rows)[kLanes]) {
  IntVector upper, lower;
  for (int lane = 0; lane < kLanes; ++lane) {
    upper[lane] = lane & kWidth ? lane - kWidth + kLanes : lane;
    lower[lane] = lane & kWidth ? lane + kLanes : lane + kWidth;
  }
#pragma GCC unroll 2
  for (int group = 0; group < kLanes; group += 2 * kWidth) {
#pragma GCC unroll 8
    for (int i = group; i < group + kWidth; ++i) {
      const FloatVector above = rows[i], below = rows[i + kWidth];
      rows[i] = __builtin_shuffle(above, below, upper);
      rows[i + kWidth] = __builtin_shuffle(above, below, lower);
    }
  }
}
#endif

// rows[i] lane j <-> rows[j] lane i: first within the 4 x 4 blocks of every 16 bytes, then those blocks among
// each other.
static inline void transpose(FloatVector (&rows)[kLanes]) {
#if defined(__GNUC__) && !defined(__clang__)
  IntVector low, high, low_pairs, high_pairs;
  for (int lane = 0; lane < kLanes; ++lane) {
    const int quad = lane / 4 * 4, i = lane % 4;
    low[lane] = quad + i / 2 + i % 2 * kLanes;
    high[lane] = low[lane] + 2;
    low_pairs[lane] = quad + i % 2 + i / 2 * kLanes;
    high_pairs[lane] = low_pairs[lane] + 2;
  }
#pragma GCC unroll 4
  for (int i = 0; i < kLanes; i += 4) {
    const FloatVector a = __builtin_shuffle(rows[i], rows[i + 1], low);
    const FloatVector b = __builtin_shuffle(rows[i], rows[i + 1], high);
    const FloatVector c = __builtin_shuffle(rows[i + 2], rows[i + 3], low);
    const FloatVector d = __builtin_shuffle(rows[i + 2], rows[i + 3], high);
    rows[i] = __builtin_shuffle(a, c, low_pairs);
    rows[i + 1] = __builtin_shuffle(a, c, high_pairs);
    rows[i + 2] = __builtin_shuffle(b, d, low_pairs);
    rows[i + 3] = __builtin_shuffle(b, d, high_pairs);
  }
  if constexpr (kLanes >= 8) swap_blocks<4>(rows);
  if constexpr (kLanes >= 16) swap_blocks<8>(rows);
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
