// NF4 codes as 16-bit integers, in the panels that gemm_fixed_point.h multiplies. AVX2 only.
//
// The codebook is rounded to integers of 1 / kCodeScale, whatever a block's absmax: |error| <= 2.1e-4 absmax,
// where a weight rounded to bfloat16 may be off by 4e-3 of itself. No scale below 2048 makes the
// largest relative error, 6e-4, smaller by more than a hundredth.
//
//     panel of one block: 64 k, 16 columns       step p holds k = 2p and 2p + 1 of every column, as vpmaddwd
//       p=0   c0: k0 k1   c1: k0 k1 ...  c15     wants them: one 32-bit lane a column, two vectors a step
//       ...
//       p=31
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/kernel_table.h"
#include "pyft/nf4_format.h"

namespace pyft::cpu::PYFT_ISA {

constexpr float kCodeScale = 1747.04f;
constexpr int kPanelColumns = 16;
constexpr int kPanelVectors = kNf4BlockSize;  // 32 steps of two

// The integers' lower and upper bytes, for vpshufb.
class FixedPointDecoder {
 public:
  FixedPointDecoder() {
    alignas(16) std::uint8_t low[16], high[16];
    for (int i = 0; i < 16; ++i) {
      const float scaled = kNf4Codebook[i] * kCodeScale;
      const int code = static_cast<int>(scaled < 0.0f ? scaled - 0.5f : scaled + 0.5f);
      low[i] = static_cast<std::uint8_t>(code & 255);
      high[i] = static_cast<std::uint8_t>(code >> 8 & 255);
    }
    low_ = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(low)));
    high_ = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(high)));
  }

  // The block's even elements, 0 to 14 and 32 to 46 in the halves of the first vector, 16 to 30 and 48 to 62
  // in those of the second; then the odd ones.
  void decode_nibbles(const std::uint8_t* codes, __m256i (&out)[4]) const {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
    look_up(_mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble_), out[0], out[1]);
    look_up(_mm256_and_si256(bytes, nibble_), out[2], out[3]);
  }

  // A panel of x W^T: column c is the block at codes[c], k along it. A byte is a step of its column, so bytes
  // are transposed before they become integers.
  void decode_rows(const std::uint8_t* const (&codes)[kPanelColumns], __m256i* panel) const {
    for (int half = 0; half < 2; ++half) {
      // lower halves: columns 0-3 and 8-11, upper halves: 4-7 and 12-15; unpacking leaves them in order
      __m256i a[8], b[8];
      for (int i = 0; i < 8; ++i) {
        const int column = i < 4 ? i : i + 4;
        a[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(load_half(codes[column], half)),
                                       load_half(codes[column + 4], half), 1);
      }
      for (int i = 0; i < 4; ++i) {
        b[2 * i] = _mm256_unpacklo_epi8(a[i], a[i + 4]);
        b[2 * i + 1] = _mm256_unpackhi_epi8(a[i], a[i + 4]);
      }
      for (int i = 0; i < 4; ++i) {
        a[2 * i] = _mm256_unpacklo_epi8(b[i], b[i + 4]);
        a[2 * i + 1] = _mm256_unpackhi_epi8(b[i], b[i + 4]);
      }
      for (int i = 0; i < 4; ++i) {
        store_steps(_mm256_unpacklo_epi8(a[i], a[i + 4]), panel);
        store_steps(_mm256_unpackhi_epi8(a[i], a[i + 4]), panel + 4);
        panel += 8;
      }
    }
  }

  // Step p of the four panels of dY W: rows 2p and 2p + 1 of a block of columns; `second` null is a row of
  // zeros. Panels are panel_stride vectors apart.
  void decode_row_pair(const std::uint8_t* first, const std::uint8_t* second, __m256i* panels,
                       std::int64_t panel_stride) const {
    for (int half = 0; half < 2; ++half, panels += 2 * panel_stride) {
      __m256i a[2], b[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
      look_up(in_panel_order(first, half), a[0], a[1]);
      if (second) look_up(in_panel_order(second, half), b[0], b[1]);
      for (int i = 0; i < 2; ++i) {
        _mm256_store_si256(panels + i * panel_stride, _mm256_unpacklo_epi16(a[i], b[i]));
        _mm256_store_si256(panels + i * panel_stride + 1, _mm256_unpackhi_epi16(a[i], b[i]));
      }
    }
  }

 private:
  static __m128i load_half(const std::uint8_t* codes, int half) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes) + half);
  }

  // Integers of the indices 0 to 7 of each half, and of 8 to 15.
  void look_up(__m256i index, __m256i& first, __m256i& second) const {
    const __m256i low = _mm256_shuffle_epi8(low_, index), high = _mm256_shuffle_epi8(high_, index);
    first = _mm256_unpacklo_epi8(low, high);
    second = _mm256_unpackhi_epi8(low, high);
  }

  // Two steps, each the bytes of 16 columns.
  void store_steps(__m256i bytes, __m256i* panel) const {
    __m256i even[2], odd[2];
    look_up(_mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble_), even[0], even[1]);
    look_up(_mm256_and_si256(bytes, nibble_), odd[0], odd[1]);
    for (int i = 0; i < 2; ++i) {
      _mm256_store_si256(panel + 2 * i, _mm256_unpacklo_epi16(even[i], odd[i]));
      _mm256_store_si256(panel + 2 * i + 1, _mm256_unpackhi_epi16(even[i], odd[i]));
    }
  }

  // Codes of 32 columns of a row: 0-3, 8-11, 16-19, 24-27 in the lower half, the others in the upper one.
  __m256i in_panel_order(const std::uint8_t* codes, int half) const {
    const __m256i order = _mm256_setr_epi8(0, 0, 1, 1, 4, 4, 5, 5, 8, 8, 9, 9, 12, 12, 13, 13, 2, 2, 3, 3, 6,
                                           6, 7, 7, 10, 10, 11, 11, 14, 14, 15, 15);
    const __m256i twice = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load_half(codes, half)), order);
    return _mm256_and_si256(_mm256_blendv_epi8(_mm256_srli_epi16(twice, 4), twice, odd_), nibble_);
  }

  __m256i low_, high_;
  __m256i nibble_ = _mm256_set1_epi8(15);
  __m256i odd_ = _mm256_set1_epi16(static_cast<short>(0xff00));
};

// absmax of blocks first_block, first_block + stride, ... / kCodeScale.
static inline void fixed_block_scales(const Nf4View& weight, std::int64_t first_block, std::int64_t stride,
                                      std::int64_t num_blocks, float* out) {
  nf4_block_scales(weight, first_block, stride, num_blocks, out);
  for (std::int64_t i = 0; i < num_blocks; ++i) out[i] *= 1.0f / kCodeScale;
}

}  // namespace pyft::cpu::PYFT_ISA
