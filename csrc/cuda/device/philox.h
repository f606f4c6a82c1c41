// Dropout's mask, the same as on the CPU (pyft/ops/dropout.py is the definition): entry e of a matrix is kept
// if word e % 4 of Philox4x32-10, with counter e / 4 and the seed as key, is at least the threshold.
#pragma once

#include <cmath>

#include "cuda/device/platform.h"
#include "pyft/ops.h"

namespace pyft::cuda {

struct DropoutMask {
  std::uint64_t seed;
  std::uint32_t threshold;
  bool is_active;
};

inline DropoutMask dropout_mask(const Dropout& dropout) {
  const double words = std::nearbyint(dropout.probability * 4294967296.0);
  return {dropout.seed, static_cast<std::uint32_t>(words < 4294967295.0 ? words : 4294967295.0),
          dropout.probability > 0.0};
}

// What kept entries are multiplied with.
inline double keep_scale(const Dropout& dropout) { return 1.0 / (1.0 - dropout.probability); }

// Bit i says whether entry 4 * counter + i is kept.
__device__ __forceinline__ std::uint32_t keep_four(const DropoutMask& mask, std::uint64_t counter) {
  std::uint32_t c0 = static_cast<std::uint32_t>(counter), c1 = static_cast<std::uint32_t>(counter >> 32);
  std::uint32_t c2 = 0, c3 = 0;
  std::uint32_t k0 = static_cast<std::uint32_t>(mask.seed), k1 = static_cast<std::uint32_t>(mask.seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{c0} * 0xD2511F53u, p1 = std::uint64_t{c2} * 0xCD9E8D57u;
    c0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<std::uint32_t>(p1);
    c2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<std::uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return (c0 >= mask.threshold ? 1u : 0u) | (c1 >= mask.threshold ? 2u : 0u) |
         (c2 >= mask.threshold ? 4u : 0u) | (c3 >= mask.threshold ? 8u : 0u);
}

// Bit i says whether entry first + i is kept, of eight.
__device__ __forceinline__ std::uint32_t keep_eight(const DropoutMask& mask, std::int64_t first) {
  const std::uint64_t counter = static_cast<std::uint64_t>(first) / 4;
  const int skipped = static_cast<int>(first % 4);
  std::uint32_t bits = keep_four(mask, counter) | keep_four(mask, counter + 1) << 4;
  if (skipped) bits |= keep_four(mask, counter + 2) << 8;
  return bits >> skipped & 0xffu;
}

}  // namespace pyft::cuda
