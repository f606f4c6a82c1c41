// NF4 codes of a block of 64 for AVX2 (nf4_quantize_kernels.cpp has the rule and the portable form).
//
// A value walks down the binary tree of the 15 bounds and goes right of those it is above; each next bound is
// looked up by the path so far, whose bits are the code in the end:
//
//     level 0        b7               above or not
//     level 1     b3    b11           one of 2
//     level 2   b1 b5  b9 b13         one of 4
//     level 3  b0 b2 ..... b14        one of 8
//
// bfloat16 stays in 16 bits, twice as many values to a vector, and no value is multiplied: rounded x *
// inverse never falls as x grows, so x * inverse > bound exactly where x > T, the largest bfloat16 for which
// x * inverse <= bound. For each block and bound, bound * divisor, widened by far more than roundings amount
// to and far less than a step of bfloat16, and cut to bfloat16, is T or one step above it; its product with
// inverse tells. Entries of 16 bits are looked up as bytes (vpshufb), so a path is kept in both bytes of a
// lane: one points at an entry's lower byte, one at its upper.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/vector.h"
#include "pyft/dtype.h"
#include "pyft/nf4_format.h"

namespace pyft::cpu::PYFT_ISA {

// The bounds times `factor` in two vectors: level 3 in their lower halves, the other levels in the upper.
struct alignas(32) OrderedBounds {
  constexpr explicit OrderedBounds(float factor) : data() {
    constexpr int kOrder[16] = {0, 2, 4, 6, 1, 5, 9, 13, 8, 10, 12, 14, 3, 11, 7, 7};
    for (int i = 0; i < 16; ++i) data[i] = kNf4Bounds.data[kOrder[i]] * factor;
  }
  __m256 half(int index) const { return _mm256_load_ps(data + 8 * index); }
  float data[16];
};
constexpr OrderedBounds kOrderedBounds(1.0f), kWidenedBounds(1.0f + 0x1p-14f);

// One block's tree. Integers order bfloat16 if a negative one is the complement of its magnitude.
struct Thresholds {
  __m256i root;    // 16-bit lanes
  __m256i inner;   // bytes of each half: level 2's lower ones, its upper ones, the same of level 1
  __m256i leaves;  // level 3's lower ones, its upper ones
};

static inline Thresholds block_thresholds(float divisor, float inverse) {
  // of bounds 0 to 6, the negative ones
  const __m256i complement[2] = {_mm256_setr_epi32(0x7fff, 0x7fff, 0x7fff, 0x7fff, 0x7fff, 0x7fff, 0, 0),
                                 _mm256_setr_epi32(0, 0, 0, 0, 0x7fff, 0, 0, 0)};
  const __m256i in_bytes = _mm256_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15, 0, 2, 4, 6,
                                            1, 3, 5, 7, 8, 10, 9, 11, 12, 13, 12, 13);
  __m256i found[2];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const __m256 near = _mm256_mul_ps(kWidenedBounds.half(i), _mm256_set1_ps(divisor));
    const __m256 cut = _mm256_and_ps(near, _mm256_castsi256_ps(_mm256_set1_epi32(-0x10000)));
    const __m256 above =
        _mm256_cmp_ps(_mm256_mul_ps(cut, _mm256_set1_ps(inverse)), kOrderedBounds.half(i), _CMP_GT_OQ);
    const __m256i order = _mm256_xor_si256(_mm256_srai_epi32(_mm256_castps_si256(cut), 16), complement[i]);
    found[i] = _mm256_add_epi32(order, _mm256_castps_si256(above));
  }
  const __m256i bytes = _mm256_shuffle_epi8(_mm256_packs_epi32(found[0], found[1]), in_bytes);
  const __m256i inner = _mm256_permute2x128_si256(bytes, bytes, 0x11);
  return {_mm256_shuffle_epi8(inner, _mm256_set1_epi16(0x0d0c)), inner,
          _mm256_permute2x128_si256(bytes, bytes, 0x00)};
}

// One level down: every byte of a path p becomes 2 p + (value above its bound).
static inline __m256i descend(__m256i path, __m256i value, __m256i bound) {
  return _mm256_sub_epi8(_mm256_add_epi8(path, path), _mm256_cmpgt_epi16(value, bound));
}

// The codes of 16 values, in the lowest four bits of each lane.
static inline __m256i find_codes(const BFloat16Bits* values, const Thresholds& tree) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
  const __m256i value = _mm256_xor_si256(bits, _mm256_srli_epi16(_mm256_srai_epi16(bits, 15), 1));
  // doubled, 4 and 5 lead to level 1 in `inner`, and then to level 2 and to `leaves` modulo 16
  __m256i path = descend(_mm256_set1_epi16(0x0504), value, tree.root);
  path = descend(path, value, _mm256_shuffle_epi8(tree.inner, path));
  path = descend(path, value, _mm256_shuffle_epi8(tree.inner, path));
  return descend(path, value, _mm256_shuffle_epi8(tree.leaves, path));
}

// Pairs of codes, a byte each, to one byte in 16 bits: the first of a pair above the second.
static inline __m256i join_pairs(__m256i codes) {
  return _mm256_maddubs_epi16(codes, _mm256_set1_epi16(0x0110));
}

// `divisor` is finite and so are the values, `inverse` 1 / divisor in float32.
static inline void encode_block(const BFloat16Bits* values, float divisor, float inverse,
                                std::uint8_t* packed) {
  const Thresholds tree = block_thresholds(divisor, inverse);
  __m256i codes[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    codes[i] = _mm256_and_si256(find_codes(values + 16 * i, tree), _mm256_set1_epi16(15));
  }
  const __m256i first = join_pairs(_mm256_packus_epi16(codes[0], codes[1]));
  const __m256i second = join_pairs(_mm256_packus_epi16(codes[2], codes[3]));
  // packing goes by halves: four bytes of each vector, then the other four
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(first, second), order);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(packed), bytes);
}

// Minus the codes of 8 values.
static inline __m256i find_negative_codes(__m256 value) {
  const auto next = [value](__m256i path, __m256 bound) {
    const __m256i above = _mm256_castps_si256(_mm256_cmp_ps(value, bound, _CMP_GT_OQ));
    return _mm256_add_epi32(_mm256_add_epi32(path, path), above);
  };
  constexpr const float (&b)[15] = kNf4Bounds.data;
  // entry -i modulo the number of entries is for path -i
  const __m256 leaves = _mm256_setr_ps(b[0], b[14], b[12], b[10], b[8], b[6], b[4], b[2]);
  const __m256 quarters = _mm256_setr_ps(b[1], b[13], b[9], b[5], b[1], b[13], b[9], b[5]);
  const __m256i root = next(_mm256_setzero_si256(), _mm256_set1_ps(b[7]));
  __m256i path =
      next(root, _mm256_blendv_ps(_mm256_set1_ps(b[3]), _mm256_set1_ps(b[11]), _mm256_castsi256_ps(root)));
  path = next(path, _mm256_permutevar_ps(quarters, path));
  return next(path, _mm256_permutevar8x32_ps(leaves, path));
}

static inline void encode_block(const float* values, float, float inverse, std::uint8_t* packed) {
  const __m256 scale = _mm256_set1_ps(inverse);
  __m256i halves[2];
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    __m256i pairs[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const float* from = values + 32 * half + 16 * i;
      pairs[i] = _mm256_packs_epi32(find_negative_codes(_mm256_mul_ps(_mm256_loadu_ps(from), scale)),
                                    find_negative_codes(_mm256_mul_ps(_mm256_loadu_ps(from + 8), scale)));
    }
    halves[half] = join_pairs(_mm256_abs_epi8(_mm256_packs_epi16(pairs[0], pairs[1])));
  }
  // 16 bits of each vector of 8, of its lower half and of its upper one
  const __m256i bytes = _mm256_packus_epi16(halves[0], halves[1]);
  const __m128i lower = _mm256_castsi256_si128(bytes), upper = _mm256_extracti128_si256(bytes, 1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(packed), _mm_unpacklo_epi16(lower, upper));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(packed) + 1, _mm_unpackhi_epi16(lower, upper));
}

// The largest magnitude of a block as bits of a float; above those of infinity if there is a NaN.
static inline std::uint32_t largest_magnitude(const BFloat16Bits* values) {
  __m256i largest = _mm256_setzero_si256();
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values) + i);
    largest = _mm256_max_epi16(largest, _mm256_and_si256(bits, _mm256_set1_epi16(0x7fff)));
  }
  const __m128i upper = _mm256_extracti128_si256(largest, 1);
  const __m128i of_lanes = _mm_max_epi16(_mm256_castsi256_si128(largest), upper);
  // there is an instruction for the smallest of eight, so their complements
  const __m128i smallest = _mm_minpos_epu16(_mm_xor_si128(of_lanes, _mm_set1_epi16(-1)));
  return ~static_cast<std::uint32_t>(_mm_cvtsi128_si32(smallest)) << 16;
}

}  // namespace pyft::cpu::PYFT_ISA
