// nf4_block.h's decoder for AVX2. It looks bytes up, 32 at once, so a block's 16 values lie in planes, one of
// every byte that is kept (the upper two of a rounded float), and values are put together again afterwards:
//
//     codes   16 bytes -> 32 codes, a byte each, in the order that the unpacking below undoes
//     planes  vpshufb in each plane: byte 2 and byte 3 (or 0 to 3) of all 32 values
//     values  unpacked in pairs, then  << 16  and  & 0xffff0000  (or unpacked once more)
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "cpu/vector.h"
#include "pyft/dtype.h"
#include "pyft/nf4_format.h"

namespace pyft::cpu::PYFT_ISA {

// Byte planes of a block's 16 values, 16 bytes each, from the lowest byte that is kept. In memory: a plane is
// loaded into both halves of a vector at no cost.
template <bool kRounds>
struct alignas(32) BlockTable {
  __m256i pairs[kRounds ? 1 : 2];

  __m256i plane(int index) const {
    return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(pairs) + index));
  }
};

// Decodes blocks of 64, rounded to bfloat16 or not; made once outside the loop.
template <bool kRounds>
class BlockDecoder {
 public:
  BlockDecoder() {
    // a compiler that knows the constants makes them again for every block
    asm("" : "+x"(even_code_), "+x"(odd_code_), "+x"(low_bits_), "+x"(one_), "+x"(below_half_), "+x"(upper_));
  }

  // Of several blocks before any code is looked up: two short chains of dependent instructions let the
  // processor work on more blocks at once than one long chain.
  void fill(const float* scales, std::int64_t num_blocks, BlockTable<kRounds>* tables) const {
    // entries in the order that puts 0-7 and 8-15 beside each other below
    const __m256 first = _mm256_setr_m128(_mm_loadu_ps(kNf4Codebook), _mm_loadu_ps(kNf4Codebook + 8));
    const __m256 second = _mm256_setr_m128(_mm_loadu_ps(kNf4Codebook + 4), _mm_loadu_ps(kNf4Codebook + 12));
    for (std::int64_t i = 0; i < num_blocks; ++i) {
      const float scale = kRounds ? plain(scales[i]) : scales[i];
      const __m256i a = bytes_of(first, scale), b = bytes_of(second, scale);
      const __m256i upper = _mm256_unpackhi_epi32(a, b);
      tables[i].pairs[kRounds ? 0 : 1] = _mm256_permute4x64_epi64(upper, 0xd8);
      if constexpr (!kRounds) {
        tables[i].pairs[0] = _mm256_permute4x64_epi64(_mm256_unpacklo_epi32(a, b), 0xd8);
      }
    }
  }

  // The 32 values of 16 bytes of codes, in order.
  void decode_half(const BlockTable<kRounds>& table, const std::uint8_t* codes,
                   FloatVector (&values)[kHalfVectors]) const {
    if constexpr (kRounds) {
      // elements 0 8 1 9 2 10 3 11, 16 24 ... | 4 12 5 13 ...: two bytes' even codes, then their odd ones
      const __m256i order = _mm256_setr_epi8(0, 4, 0, 4, 1, 5, 1, 5, 8, 12, 8, 12, 9, 13, 9, 13, 2, 6, 2, 6,
                                             3, 7, 3, 7, 10, 14, 10, 14, 11, 15, 11, 15);
      const __m256i bytes = _mm256_shuffle_epi8(load_twice(codes), order);
      __m256i pairs[2];
      const __m256i either = _mm256_blend_epi16(bytes, _mm256_srli_epi16(bytes, 4), 0x55);
      look_up_bytes(table, _mm256_and_si256(either, low_bits_), pairs);
      for (int i = 0; i < 2; ++i) {
        values[2 * i] = reinterpret_cast<FloatVector>(_mm256_slli_epi32(pairs[i], 16));
        values[2 * i + 1] = reinterpret_cast<FloatVector>(_mm256_and_si256(pairs[i], upper_));
      }
    } else {
      // elements 0 1 2 3 8 9 10 11 16 ... | 4 5 6 7 12 ...
      const __m256i order = _mm256_setr_epi8(0, 0, 1, 1, 4, 4, 5, 5, 8, 8, 9, 9, 12, 12, 13, 13, 2, 2, 3, 3,
                                             6, 6, 7, 7, 10, 10, 11, 11, 14, 14, 15, 15);
      const __m256i index = split(_mm256_shuffle_epi8(load_twice(codes), order));
      const __m256i p0 = _mm256_shuffle_epi8(table.plane(0), index);
      const __m256i p1 = _mm256_shuffle_epi8(table.plane(1), index);
      const __m256i p2 = _mm256_shuffle_epi8(table.plane(2), index);
      const __m256i p3 = _mm256_shuffle_epi8(table.plane(3), index);
      const __m256i low[2] = {_mm256_unpacklo_epi8(p0, p1), _mm256_unpackhi_epi8(p0, p1)};
      const __m256i high[2] = {_mm256_unpacklo_epi8(p2, p3), _mm256_unpackhi_epi8(p2, p3)};
      for (int i = 0; i < 2; ++i) {
        values[2 * i] = reinterpret_cast<FloatVector>(_mm256_unpacklo_epi16(low[i], high[i]));
        values[2 * i + 1] = reinterpret_cast<FloatVector>(_mm256_unpackhi_epi16(low[i], high[i]));
      }
    }
  }

  void decode_half(const BlockTable<kRounds>& table, const std::uint8_t* codes, float* out) const {
    FloatVector values[kHalfVectors];
    decode_half(table, codes, values);
#pragma GCC unroll 8
    for (int v = 0; v < kHalfVectors; ++v) store(out + v * kLanes, values[v]);
  }

  // The same 32 values as bfloat16.
  void decode_half(const BlockTable<kRounds>& table, const std::uint8_t* codes, BFloat16Bits* out) const {
    // elements 0 to 7, 16 to 23 | 8 to 15, 24 to 31
    const __m256i order = _mm256_setr_epi8(0, 0, 1, 1, 2, 2, 3, 3, 8, 8, 9, 9, 10, 10, 11, 11, 4, 4, 5, 5, 6,
                                           6, 7, 7, 12, 12, 13, 13, 14, 14, 15, 15);
    __m256i pairs[2];
    look_up_bytes(table, split(_mm256_shuffle_epi8(load_twice(codes), order)), pairs);
    for (int i = 0; i < 2; ++i) _mm256_storeu_si256(reinterpret_cast<__m256i*>(out) + i, pairs[i]);
  }

 private:
  // What round_to_bfloat16 leaves of a NaN, and the rounding below keeps.
  static float plain(float scale) {
    if (scale == scale) return scale;
    std::uint32_t bits;
    std::memcpy(&bits, &scale, sizeof bits);
    bits = (bits | 0x00400000u) & 0xffff0000u;
    std::memcpy(&scale, &bits, sizeof scale);
    return scale;
  }

  // Four bytes of each entry, sorted by byte: 32 bits of the lowest ones, then of the next.
  __m256i bytes_of(__m256 entries, float scale) const {
    const __m256i by_byte = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, 0, 4, 8,
                                             12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m256i bits = _mm256_castps_si256(_mm256_mul_ps(entries, _mm256_set1_ps(scale)));
    if (kRounds) {  // to the nearest, ties to even: what lies below the upper half is not used
      const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), one_);
      bits = _mm256_add_epi32(_mm256_add_epi32(bits, below_half_), odd);
    }
    return _mm256_shuffle_epi8(bits, by_byte);
  }

  // Codes of 16-bit lanes that hold one byte twice: the even element's below the odd one's.
  __m256i split(__m256i twice) const {
    return _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(twice, 4), even_code_),
                           _mm256_and_si256(twice, odd_code_));
  }

  static __m256i load_twice(const std::uint8_t* codes) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
  }

  // The two planes' bytes, put together: of bytes 0 to 7 of each half of `index`, and of 8 to 15.
  static void look_up_bytes(const BlockTable<kRounds>& table, __m256i index, __m256i (&pairs)[2]) {
    const __m256i low = _mm256_shuffle_epi8(table.plane(0), index);
    const __m256i high = _mm256_shuffle_epi8(table.plane(1), index);
    pairs[0] = _mm256_unpacklo_epi8(low, high);
    pairs[1] = _mm256_unpackhi_epi8(low, high);
  }

  __m256i even_code_ = _mm256_set1_epi16(0x000f);
  __m256i odd_code_ = _mm256_set1_epi16(0x0f00);
  __m256i low_bits_ = _mm256_set1_epi8(15);
  __m256i one_ = _mm256_set1_epi32(1);
  __m256i below_half_ = _mm256_set1_epi32(0x7fff);
  __m256i upper_ = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
};

}  // namespace pyft::cpu::PYFT_ISA
