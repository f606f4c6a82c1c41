// Element types that cross the boundary to Python, and bfloat16 <-> float32.
#pragma once

#include <cstdint>
#include <cstring>

namespace pyft {

// Every dtype a caller may hand over by mistake has a name, so that the operation can say what it got.
enum class DType { kFloat32, kBFloat16, kUInt8, kInt32, kInt64, kFloat64, kFloat16, kInt8, kInt16, kBool };
constexpr int kNumDTypes = 10;

constexpr const char* kDTypeNames[kNumDTypes] = {"float32", "bfloat16", "uint8", "int32", "int64",
                                                 "float64", "float16",  "int8",  "int16", "bool"};
constexpr int kDTypeBytes[kNumDTypes] = {4, 2, 1, 4, 8, 8, 2, 1, 2, 1};

constexpr const char* dtype_name(DType dtype) { return kDTypeNames[static_cast<int>(dtype)]; }
constexpr int dtype_bytes(DType dtype) { return kDTypeBytes[static_cast<int>(dtype)]; }

// The bits of a bfloat16: the upper half of a float32.
using BFloat16Bits = std::uint16_t;

// `static`, not `inline`: these are used by sources compiled once per instruction set, and an external copy
// built with AVX-512 must never be the one the linker keeps for everybody.
static inline float bfloat16_to_float(BFloat16Bits bits) {
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

// Rounds to nearest, ties to even, as torch does; every NaN becomes a quiet NaN of the same sign.
static inline BFloat16Bits float_to_bfloat16(float value) {
  std::uint32_t wide;
  std::memcpy(&wide, &value, sizeof wide);
  const bool is_nan = (wide & 0x7fffffffu) > 0x7f800000u;
  const std::uint32_t rounded = (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16;
  return static_cast<BFloat16Bits>(is_nan ? ((wide >> 16) | 0x40u) : rounded);
}

static inline float round_to_bfloat16(float value) { return bfloat16_to_float(float_to_bfloat16(value)); }

}  // namespace pyft
