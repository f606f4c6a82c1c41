// Products of bfloat16 pairs summed in float32: sum + a.low * b.low + a.high * b.high in every 32-bit lane.
//
// vdpbf16ps (AVX512_BF16) does it in one instruction, two multiplications a lane. The portable form beside it
// keeps its arithmetic, and a build with PYFT_BFLOAT16_PAIRS takes it, so that packing, tiles and edges of
// this path are tested on any machine (csrc/README.md).
//
// How it differs from float32 multiply-adds of the same values: denormal inputs and sums count as zero, and
// the order of the two additions. A product of two bfloat16 is exact in float32 either way, so the error of a
// sum of K terms keeps the bound K * 2^-24 * sum of |a b|, plus K * 2^-126 for what was flushed.
#pragma once

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include <cstdint>

#include "cpu/vector.h"

namespace pyft::cpu::PYFT_ISA {

#if defined(__AVX512BF16__)

constexpr bool kMultipliesPairs = true;

static inline FloatVector add_pair_products(FloatVector sum, BitsVector a, BitsVector b) {
  return reinterpret_cast<FloatVector>(_mm512_dpbf16_ps(
      reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
}

#else

#if defined(PYFT_BFLOAT16_PAIRS)
constexpr bool kMultipliesPairs = true;
#else
constexpr bool kMultipliesPairs = false;
#endif

static inline FloatVector flushed(BitsVector bits) {
  return reinterpret_cast<FloatVector>((bits & 0x7f800000u) != 0 ? bits : bits & 0x80000000u);
}

static inline FloatVector add_pair_products(FloatVector sum, BitsVector a, BitsVector b) {
  sum += flushed(a & 0xffff0000u) * flushed(b & 0xffff0000u);
  sum = flushed(reinterpret_cast<BitsVector>(sum));
  sum += flushed(a << 16) * flushed(b << 16);
  return flushed(reinterpret_cast<BitsVector>(sum));
}

#endif

}  // namespace pyft::cpu::PYFT_ISA
