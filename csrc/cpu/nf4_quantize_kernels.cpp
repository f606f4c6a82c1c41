// NF4 quantise of one instruction set (nf4_format.h draws the layout). Bit-equal to bitsandbytes on the CPU,
// so: compiled without contraction into fused multiply-adds, each product rounded by itself.
//
//   absmax of the block, v = x * (1 / absmax), code = number of bounds below v.
//   A short last block divides instead (v = x / absmax) and stores an absmax of at least 1e-38.
//   A NaN makes absmax NaN and every code 15, so it stays visible after dequantising.
//
// kLanes blocks at a time, all scales before the first code: a block alone is one long chain of dependent
// steps. With AVX2, nf4_codes.h finds the codes of whole blocks of finite values.
#include <cstdint>
#include <cstring>

#include "cpu/kernel_table.h"
#include "cpu/vector.h"
#include "pyft/nf4_format.h"

#ifdef __AVX2__
#include "cpu/nf4_codes.h"
#endif

namespace pyft::cpu::PYFT_ISA {
namespace {

inline FloatVector load_floats(const float* from) { return load(from); }

inline FloatVector load_floats(const BFloat16Bits* from) {
  return reinterpret_cast<FloatVector>(load_wide(from) << 16);
}

constexpr float kInfinity = __builtin_huge_valf();

inline FloatVector plain_nan(FloatVector largest) {
  return largest == largest ? largest : FloatVector{} + __builtin_nanf("");
}

// Lane r: the largest magnitude of block r; NaN if any value is. Magnitudes compare as integers in the order
// of their values, and a NaN above them all.
template <typename T>
FloatVector largest_magnitudes(const T* weight, int num_blocks) {
  FloatVector largest[kLanes] = {};
  for (int r = 0; r < num_blocks; ++r, weight += kNf4BlockSize) {
    IntVector of_block = {};
    for (int i = 0; i < kNf4BlockSize; i += kLanes) {
      const IntVector magnitude = reinterpret_cast<IntVector>(load_floats(weight + i)) & 0x7fffffff;
      of_block = magnitude > of_block ? magnitude : of_block;
    }
    largest[r] = reinterpret_cast<FloatVector>(of_block);
  }
  transpose(largest);
  IntVector of_all = {};
  for (int i = 0; i < kLanes; ++i) {
    const IntVector magnitude = reinterpret_cast<IntVector>(largest[i]);
    of_all = magnitude > of_all ? magnitude : of_all;
  }
  return plain_nan(reinterpret_cast<FloatVector>(of_all));
}

#ifdef __AVX2__
FloatVector largest_magnitudes(const BFloat16Bits* weight, int num_blocks) {
  std::uint32_t largest[kLanes] = {};
  for (int r = 0; r < num_blocks; ++r) largest[r] = largest_magnitude(weight + r * kNf4BlockSize);
  return plain_nan(load_bits(largest));
}
#endif

constexpr int kZeroCode = 7;

// The number of bounds not above a value, so that a NaN has all 15.
inline IntVector find_codes(FloatVector value) {
  IntVector count = IntVector{} + 15;
  for (int j = 0; j < 15; ++j) count += value <= kNf4Bounds.data[j];  // a true lane is -1
  return count;
}

// Packs the codes of a block, two to a byte.
inline void store_codes(const std::uint8_t* codes, std::uint8_t* packed) {
  for (int i = 0; i < kNf4BlockSize / 2; ++i) {
    packed[i] = static_cast<std::uint8_t>(codes[2 * i] << 4 | codes[2 * i + 1]);
  }
}

template <typename T>
void encode_plainly(const T* values, float inverse, std::uint8_t* packed) {
  std::int32_t found[kNf4BlockSize];
  for (int i = 0; i < kNf4BlockSize; i += kLanes) {
    const IntVector codes = find_codes(load_floats(values + i) * inverse);
    std::memcpy(found + i, &codes, sizeof codes);
  }
  std::uint8_t codes[kNf4BlockSize];
  for (int i = 0; i < kNf4BlockSize; ++i) codes[i] = static_cast<std::uint8_t>(found[i]);
  store_codes(codes, packed);
}

template <typename T>
void quantize_whole_blocks(const T* weight, int num_blocks, std::uint8_t* packed, float* absmax) {
  const FloatVector largest = largest_magnitudes(weight, num_blocks);
  const FloatVector divisor = largest < kSmallestAbsmax ? FloatVector{} + kSmallestAbsmax : largest;
  float divisors[kLanes], inverses[kLanes], scales[kLanes];
  store(divisors, divisor);
  store(inverses, 1.0f / divisor);
  store(scales, largest);
  std::memcpy(absmax, scales, static_cast<std::size_t>(num_blocks) * sizeof *absmax);
  for (int r = 0; r < num_blocks; ++r, weight += kNf4BlockSize, packed += kNf4BlockSize / 2) {
#ifdef __AVX2__
    if (divisors[r] < kInfinity) {  // neither infinity nor NaN in the block
      encode_block(weight, divisors[r], inverses[r], packed);
      continue;
    }
#endif
    encode_plainly(weight, inverses[r], packed);
  }
}

// The last block of fewer than 64 values; the code of zero fills it up.
template <typename T>
void quantize_short_block(const T* weight, int num_values, std::uint8_t* packed, float* absmax) {
  T values[kNf4BlockSize] = {};
  std::memcpy(values, weight, static_cast<std::size_t>(num_values) * sizeof *weight);
  const float largest = largest_magnitudes(values, 1)[0];
  *absmax = largest < kSmallestAbsmax ? kSmallestAbsmax : largest;
  std::uint8_t codes[kNf4BlockSize], whole[kNf4BlockSize / 2];
  for (int i = 0; i < kNf4BlockSize; i += kLanes) {
    const IntVector found = find_codes(load_floats(values + i) / *absmax);
    for (int lane = 0; lane < kLanes; ++lane) {
      codes[i + lane] = static_cast<std::uint8_t>(i + lane < num_values ? found[lane] : kZeroCode);
    }
  }
  store_codes(codes, whole);
  std::memcpy(packed, whole, static_cast<std::size_t>((num_values + 1) / 2));
}

template <typename T>
void quantize_blocks(const T* weight, std::int64_t num_weights, std::int64_t first_block,
                     std::int64_t last_block, std::uint8_t* codes, float* absmax) {
  const std::int64_t num_whole = num_weights / kNf4BlockSize;
  for (std::int64_t block = first_block; block < last_block; block += kLanes) {
    const std::int64_t end = block + kLanes < last_block ? block + kLanes : last_block;
    const int num_blocks = static_cast<int>((end < num_whole ? end : num_whole) - block);
    const std::int64_t start = block * kNf4BlockSize;
    quantize_whole_blocks(weight + start, num_blocks, codes + start / 2, absmax + block);
    if (end > num_whole) {
      const std::int64_t rest = num_whole * kNf4BlockSize;
      quantize_short_block(weight + rest, static_cast<int>(num_weights - rest), codes + rest / 2,
                           absmax + num_whole);
    }
  }
}

}  // namespace

void nf4_quantize(const void* weight, DType dtype, std::int64_t num_weights, std::int64_t first_block,
                  std::int64_t last_block, std::uint8_t* codes, float* absmax) {
  if (dtype == DType::kBFloat16) {
    quantize_blocks(static_cast<const BFloat16Bits*>(weight), num_weights, first_block, last_block, codes,
                    absmax);
  } else {
    quantize_blocks(static_cast<const float*>(weight), num_weights, first_block, last_block, codes, absmax);
  }
}

}  // namespace pyft::cpu::PYFT_ISA
