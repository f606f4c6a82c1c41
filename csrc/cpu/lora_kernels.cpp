// Dropout's random factors. Compiled once per instruction set (rule in kernels.h).
//
//     factors[i] = keep_scale if the word of entry first_entry + i is >= threshold, else 0
//
// Entry e takes word e % 4 of Philox4x32-10 with counter e / 4 and the seed as its key (pyft/ops/dropout.py
// is the definition, in plain torch).
#ifdef __SSE2__
#include <immintrin.h>
#endif

#include <cstdint>

#include "cpu/kernel_table.h"
#include "cpu/vector.h"

namespace pyft::cpu::PYFT_ISA {
namespace {

// One 32-bit word in the lower half of each 64-bit lane: a 32 x 32 -> 64 bit product is then one instruction.
typedef std::uint64_t Words __attribute__((vector_size(PYFT_VECTOR_BYTES)));

constexpr int kWords = PYFT_VECTOR_BYTES / 8;
constexpr int kVectors = 4;  // independent chains, to hide the latency of ten dependent products
constexpr int kCounters = kWords * kVectors;
constexpr int kEntries = 4 * kCounters;
constexpr std::uint64_t kLowHalf = 0xffffffffu;

inline Words multiply(Words a, std::uint32_t factor) {
  const Words b = Words{} + std::uint64_t{factor};
#if PYFT_VECTOR_BYTES == 64 && defined(__AVX512F__)
  return reinterpret_cast<Words>(
      _mm512_maskz_mul_epu32(0xff, reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif PYFT_VECTOR_BYTES == 32 && defined(__AVX2__)
  return reinterpret_cast<Words>(
      _mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif PYFT_VECTOR_BYTES == 16 && defined(__SSE2__)
  return reinterpret_cast<Words>(_mm_mul_epu32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
  return a * b;  // what the three instructions compute; compilers do not find them
#endif
}

// Words of counters first, first + 1, ...: words[4 * i + j] is word j of counter first + i.
inline void philox(std::uint64_t first_counter, std::uint64_t seed, std::uint32_t* words) {
  Words c0[kVectors], c1[kVectors], c2[kVectors], c3[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    Words counter = Words{} + (first_counter + static_cast<std::uint64_t>(v * kWords));
    for (int i = 0; i < kWords; ++i) counter[i] += static_cast<std::uint64_t>(i);
    c0[v] = counter & kLowHalf;
    c1[v] = counter >> 32;
    c2[v] = Words{};
    c3[v] = Words{};
  }
  std::uint64_t k0 = seed & kLowHalf, k1 = seed >> 32;
  for (int round = 0; round < 10; ++round) {
    for (int v = 0; v < kVectors; ++v) {
      const Words p0 = multiply(c0[v], 0xD2511F53), p1 = multiply(c2[v], 0xCD9E8D57);
      c0[v] = (p1 >> 32) ^ c1[v] ^ k0;
      c1[v] = p1 & kLowHalf;
      c2[v] = (p0 >> 32) ^ c3[v] ^ k1;
      c3[v] = p0 & kLowHalf;
    }
    k0 = (k0 + 0x9E3779B9u) & kLowHalf;
    k1 = (k1 + 0xBB67AE85u) & kLowHalf;
  }
  for (int v = 0; v < kVectors; ++v) {
    const Words low = c0[v], second = c1[v], third = c2[v], high = c3[v];
    for (int i = 0; i < kWords; ++i, words += 4) {
      words[0] = static_cast<std::uint32_t>(low[i]);
      words[1] = static_cast<std::uint32_t>(second[i]);
      words[2] = static_cast<std::uint32_t>(third[i]);
      words[3] = static_cast<std::uint32_t>(high[i]);
    }
  }
}

}  // namespace

void dropout_factors(std::uint64_t seed, std::int64_t first_entry, std::int64_t n, std::uint32_t threshold,
                     float keep_scale, float* factors) {
  const std::int64_t skipped = first_entry % 4;
  std::uint64_t counter = static_cast<std::uint64_t>(first_entry / 4);
  for (std::int64_t i = -skipped; i < n; i += kEntries, counter += kCounters) {
    std::uint32_t words[kEntries];
    philox(counter, seed, words);
    if (i >= 0 && i + kEntries <= n) {
      for (int j = 0; j < kEntries; ++j) factors[i + j] = words[j] >= threshold ? keep_scale : 0.0f;
    } else {
      const std::int64_t begin = i < 0 ? -i : 0, end = i + kEntries <= n ? kEntries : n - i;
      for (std::int64_t j = begin; j < end; ++j) factors[i + j] = words[j] >= threshold ? keep_scale : 0.0f;
    }
  }
}

}  // namespace pyft::cpu::PYFT_ISA
