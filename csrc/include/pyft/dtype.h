// Element types that cross the boundary to Python, and bfloat16 <-> float32.
#pragma once

#include <cstdint>
#include <cstring>

namespace pyft {

enum class DType { kFloat32, kBFloat16, kUInt8, kInt32, kInt64 };

constexpr int dtype_bytes(DType dtype) {
  return dtype == DType::kInt64 ? 8 : dtype == DType::kBFloat16 ? 2 : dtype == DType::kUInt8 ? 1 : 4;
}

constexpr const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kUInt8:
      return "uint8";
    case DType::kInt32:
      return "int32";
    case DType::kInt64:
      return "int64";
  }
  return "unknown";
}

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
