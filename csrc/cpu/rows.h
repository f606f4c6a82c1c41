// Rows of float32 or bfloat16 as vectors of float32: loads, stores and their short ends, and exp. For
// `*_kernels.cpp`; everything is `static`, see the rule in kernels.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/vector.h"
#include "pyft/dtype.h"

namespace pyft::cpu::PYFT_ISA {

static inline FloatVector select(IntVector condition, FloatVector yes, FloatVector no) {
  return reinterpret_cast<FloatVector>((condition & reinterpret_cast<IntVector>(yes)) |
                                       (~condition & reinterpret_cast<IntVector>(no)));
}

static inline FloatVector load(const BFloat16Bits* from) {
  return reinterpret_cast<FloatVector>(load_wide(from) << 16);
}

// Rounds like float_to_bfloat16. Intrinsics, because GCC takes its own __builtin_convertvector apart.
static inline void store(BFloat16Bits* to, FloatVector values) {
  const BitsVector wide = reinterpret_cast<BitsVector>(values);
  const BitsVector rounded = wide + 0x7fffu + ((wide >> 16) & 1u), quiet = wide | 0x00400000u;
  const BitsVector bits = (values == values ? rounded : quiet) >> 16;
#if defined(__AVX512F__) && PYFT_VECTOR_BYTES == 64
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm512_maskz_cvtepi32_epi16(0xffff, reinterpret_cast<__m512i>(bits)));
#elif defined(__AVX2__) && PYFT_VECTOR_BYTES == 32
  const __m256i packed =
      _mm256_packus_epi32(reinterpret_cast<__m256i>(bits), reinterpret_cast<__m256i>(bits));
  const __m256i halves = _mm256_permute4x64_epi64(packed, 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(halves));
#else
  BFloat16Bits narrow[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) narrow[lane] = static_cast<BFloat16Bits>(bits[lane]);
  std::memcpy(to, narrow, sizeof narrow);
#endif
}

// The last `count` < kLanes entries, padded.
template <typename T>
static inline FloatVector load_tail(const T* source, std::int64_t count, T padding) {
  T padded[kLanes];
  for (T& value : padded) value = padding;
  std::memcpy(padded, source, static_cast<std::size_t>(count) * sizeof(T));
  return load(padded);
}

template <typename T>
static inline void store_tail(T* target, FloatVector values, std::int64_t count) {
  T padded[kLanes];
  store(padded, values);
  std::memcpy(target, padded, static_cast<std::size_t>(count) * sizeof(T));
}

// How much of a vector lies in the row: all of it, or the first `count` entries.
struct Whole {};
struct Part {
  std::int64_t count;
};
template <typename T>
static inline FloatVector load(const T* from, Whole) {
  return load(from);
}
template <typename T>
static inline FloatVector load(const T* from, Part part) {
  return load_tail(from, part.count, T{});
}
template <typename T>
static inline void store(T* to, FloatVector values, Whole) {
  store(to, values);
}
template <typename T>
static inline void store(T* to, FloatVector values, Part part) {
  store_tail(to, values, part.count);
}

// body(first, extent) for each vector of n entries; `extent` is a Whole, or at the end a Part.
template <typename Body>
static inline void for_each_vector(std::int64_t n, const Body& body) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, Whole{});
  if (i < n) body(i, Part{n - i});
}

// x within [-most, most]; NaN stays. Intrinsics, because GCC compares and blends.
static inline FloatVector hold_within(FloatVector x, float most) {
  const FloatVector high = FloatVector{} + most, low = -high;
#if defined(__AVX512F__) && PYFT_VECTOR_BYTES == 64
  return _mm512_maskz_max_ps(0xffff, low, _mm512_maskz_min_ps(0xffff, high, x));
#elif defined(__AVX2__) && PYFT_VECTOR_BYTES == 32
  return _mm256_max_ps(low, _mm256_min_ps(high, x));
#else
  const FloatVector held = x > high ? high : x;
  return held < low ? low : held;
#endif
}

// exp(x) for |x| <= 87, or NaN: relative error below 1.2e-7, NaN for NaN, anything for other x.
// x = n ln 2 + r with |r| <= ln 2 / 2; exp(r) by a polynomial (Cephes' expf), 2^n by the exponent's bits. The
// polynomial's halves are computed side by side: a chain of products would wait for each.
static inline FloatVector exp_in_range(FloatVector x) {
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const FloatVector shifted = x * 1.44269504088896341f + kRounder;
  const FloatVector n = shifted - kRounder;
  const FloatVector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  const FloatVector square = r * r;
  const FloatVector high =
      (r * 1.9875691500e-4f + 1.3981999507e-3f) * square + (r * 8.3334519073e-3f + 4.1665795894e-2f);
  const FloatVector p = high * square + (r * 1.6666665459e-1f + 5.0000001201e-1f);
  const FloatVector exp_r = p * square + (r + 1.0f);
  const IntVector exponent = reinterpret_cast<IntVector>(shifted) << 23;  // n sits in the low bits
  return exp_r * reinterpret_cast<FloatVector>(exponent + 0x3f800000);
}

// exp(x) for x <= 0, or NaN: relative error below 1.2e-7, exactly 0 below -87, NaN for NaN.
static inline FloatVector exp_nonpositive(FloatVector x) {
  return select(x < -87.0f, FloatVector{}, exp_in_range(x));
}

}  // namespace pyft::cpu::PYFT_ISA
