// The rows of A in gemm_fixed_point.h's products: runs of 64 bfloat16 values become 16-bit integers and a
// power of two.
//
//     A strip: kFixedRows rows, runs of 64 along the sum     [run][kFixedRows][64] integers
//                                                            [run][kFixedRows]     scales
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "cpu/gemm_packing.h"
#include "cpu/scratch.h"
#include "pyft/dtype.h"
#include "pyft/nf4_format.h"

namespace pyft::cpu::PYFT_ISA {

constexpr std::int64_t kRun = kNf4BlockSize;
constexpr std::int64_t kFixedRows = 6;  // 12 accumulators, two vectors of B, one broadcast, one product
constexpr std::int64_t kStripFloats = kFixedRows * kRun / 2;  // a run's integers of a strip, as floats
constexpr std::uint16_t kInfinityBits = 0x7f80;

static inline float float_of_exponent(int biased) {
  const std::uint32_t bits = static_cast<std::uint32_t>(biased) << 23;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// 2^(e + 13) <= largest magnitude < 2^(e + 14): 2^e and 2^-e.
struct RunScale {
  explicit RunScale(std::uint16_t largest) {
    constexpr int kBias = 127, kBits = 13, kLeast = kBits + 1;  // below it 2^e would be no normal number
    const int biased = largest >> 7, exponent = biased < kLeast ? kLeast : biased;
    scale = float_of_exponent(exponent - kBits);
    inverse = float_of_exponent(2 * kBias + kBits - exponent);
  }
  float scale, inverse;
};

// Reads a run of A, and multiplies it into integers.
class RunReader {
 public:
  RunReader(const MatrixView& a, std::int64_t k)
      : data_(static_cast<const BFloat16Bits*>(a.data)), row_stride_(a.row_stride), k_(k) {}

  // The bits of the largest magnitude in row `row` from k0 on; from kInfinityBits on it is not finite.
  std::uint16_t largest(std::int64_t row, std::int64_t k0) const {
    __m256i values[4];
    read(row, k0, values);
    const __m256i magnitude = _mm256_set1_epi16(0x7fff);
    __m256i largest = _mm256_setzero_si256();
    for (const __m256i& value : values) {
      largest = _mm256_max_epu16(largest, _mm256_and_si256(value, magnitude));
    }
    const __m128i eight =
        _mm_max_epu16(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
    const __m128i inverted = _mm_xor_si128(eight, _mm_set1_epi16(-1));  // there is a minimum across only
    return static_cast<std::uint16_t>(~_mm_extract_epi16(_mm_minpos_epu16(inverted), 0));
  }

  // The run's values: vector v of `even` holds the even elements from 16 v on, of `odd` the odd ones.
  void read_floats(std::int64_t row, std::int64_t k0, __m256 (&even)[4], __m256 (&odd)[4]) const {
    __m256i values[4];
    read(row, k0, values);
    const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    for (int v = 0; v < 4; ++v) {
      even[v] = _mm256_castsi256_ps(_mm256_slli_epi32(values[v], 16));
      odd[v] = _mm256_castsi256_ps(_mm256_and_si256(values[v], upper));
    }
  }

 private:
  void read(std::int64_t row, std::int64_t k0, __m256i (&values)[4]) const {
    const BFloat16Bits* from = data_ + row * row_stride_ + k0;
    BFloat16Bits padded[kRun];
    if (k0 + kRun > k_) {
      for (std::int64_t i = 0; i < kRun; ++i) padded[i] = k0 + i < k_ ? from[i] : BFloat16Bits{};
      from = padded;
    }
    for (int v = 0; v < 4; ++v) values[v] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from) + v);
  }

  const BFloat16Bits* data_;
  std::int64_t row_stride_;
  std::int64_t k_;
};

// The largest magnitude of a run's values, as RunReader::largest gives it.
static inline std::uint16_t largest_of(const __m256 (&even)[4], const __m256 (&odd)[4]) {
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  __m256 largest = _mm256_setzero_ps();
  for (int v = 0; v < 4; ++v) {
    largest = _mm256_max_ps(_mm256_and_ps(even[v], magnitude), largest);
    largest = _mm256_max_ps(_mm256_and_ps(odd[v], magnitude), largest);
  }
  __m128 across = _mm_max_ps(_mm256_castps256_ps128(largest), _mm256_extractf128_ps(largest, 1));
  across = _mm_max_ps(across, _mm_movehl_ps(across, across));
  across = _mm_max_ss(across, _mm_movehdup_ps(across));
  return static_cast<std::uint16_t>(static_cast<std::uint32_t>(_mm_cvtsi128_si32(_mm_castps_si128(across))) >>
                                    16);
}

// A run's values divided by its scale and rounded.
static inline void to_integers(const __m256 (&values)[4], const RunScale& scale, __m256i (&integers)[4]) {
  const __m256 inverse = _mm256_set1_ps(scale.inverse);
  for (int v = 0; v < 4; ++v) integers[v] = _mm256_cvtps_epi32(_mm256_mul_ps(values[v], inverse));
}

// The largest magnitudes of A's runs [m, num_runs]; null if any is not finite.
static inline const std::uint16_t* largest_of_runs(std::int64_t m, std::int64_t num_runs,
                                                   const RunReader& reader) {
  auto* largest = reinterpret_cast<std::uint16_t*>(scratch_floats(Scratch::kGemmRows, m * num_runs));
  bool finite = true;
  for (std::int64_t row = 0; row < m; ++row) {
    for (std::int64_t run = 0; run < num_runs; ++run) {
      const std::uint16_t found = reader.largest(row, run * kRun);
      largest[row * num_runs + run] = found;
      finite &= found < kInfinityBits;
    }
  }
  return finite ? largest : nullptr;
}

// A's integers and scales, strip by strip, of some of its runs.
struct FixedStrips {
  std::int16_t* integers;  // [strip][run][kFixedRows][64]
  float* scales;           // [strip][run][kFixedRows]

  static FixedStrips allocate(std::int64_t m, std::int64_t num_runs) {
    const std::int64_t num = (m + kFixedRows - 1) / kFixedRows * num_runs;
    float* floats = scratch_floats(Scratch::kGemmA, num * (kStripFloats + kFixedRows));
    return {reinterpret_cast<std::int16_t*>(floats), floats + num * kStripFloats};
  }

  std::int16_t* row(std::int64_t strip_run, std::int64_t r) const {
    return integers + (strip_run * kFixedRows + r) * kRun;
  }
};

// A run's integers in order, so that a 32-bit lane is a pair (k, k + 1).
static inline void store_pairs(const __m256 (&even_values)[4], const __m256 (&odd_values)[4],
                               const RunScale& scale, std::int16_t* to) {
  __m256i even[4], odd[4];
  to_integers(even_values, scale, even);
  to_integers(odd_values, scale, odd);
  for (int v = 0; v < 4; ++v) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(to) + v,
                       _mm256_blend_epi16(even[v], _mm256_slli_epi32(odd[v], 16), 0xaa));
  }
}

// A run's integers in the order of decode_nibbles.
static inline void store_nibbles(const __m256 (&even_values)[4], const __m256 (&odd_values)[4],
                                 const RunScale& scale, std::int16_t* to) {
  __m256i even[4], odd[4];
  to_integers(even_values, scale, even);
  to_integers(odd_values, scale, odd);
  const auto join = [](__m256i first, __m256i second) {
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(first, second), 0xd8);
  };
  __m256i* vectors = reinterpret_cast<__m256i*>(to);
  _mm256_store_si256(vectors, join(even[0], even[2]));
  _mm256_store_si256(vectors + 1, join(even[1], even[3]));
  _mm256_store_si256(vectors + 2, join(odd[0], odd[2]));
  _mm256_store_si256(vectors + 3, join(odd[1], odd[3]));
}

}  // namespace pyft::cpu::PYFT_ISA
