// NF4 quantise and dequantise of one instruction set (nf4_format.h draws the layout). Bit-equal to
// bitsandbytes on the CPU, so: compiled without contraction into fused multiply-adds, each product and sum
// rounded by itself.
//
//   quantise     absmax of the block, v = x * (1 / absmax), code = number of bounds below v.
//                A short last block divides instead (v = x / absmax) and stores an absmax of at least 1e-38.
//                A NaN makes absmax NaN and every code 15, so it stays visible after dequantising.
//   dequantise   per block the 16 products codebook * absmax, rounded to the wanted dtype, then a look-up per
//   nibble.
#include <cstdint>
#include <cstring>

#include "cpu/kernel_table.h"
#include "cpu/vector.h"
#include "pyft/nf4_format.h"

namespace pyft::cpu::PYFT_ISA {
namespace {

float block_scale(const Nf4View& weight, std::int64_t block) {
  if (weight.absmax) return weight.absmax[block];
  const float centred =
      kDynamicMap.data[weight.absmax_codes[block]] * weight.nested_absmax[block / kNestedBlockSize];
  return centred + weight.offset;
}

// The 16 values that codes stand for, in registers: of the codebook, or of one block.
struct Table {
  FloatVector parts[16 / kLanes];
};

Table codebook() {
  Table table;
  for (int i = 0; i < 16; i += kLanes) table.parts[i / kLanes] = load(kNf4Codebook + i);
  return table;
}

Table block_table(float scale, bool to_bfloat16) {
  Table table = codebook();
  for (FloatVector& part : table.parts) {
    part *= scale;
    if (to_bfloat16) part = round_to_bfloat16(part);
  }
  return table;
}

// Lane by lane, the entry that the low four bits of `index` name.
inline FloatVector look_up(const Table& table, IntVector index) {
#if defined(__GNUC__) && !defined(__clang__) && PYFT_VECTOR_BYTES >= 32
  const FloatVector found = __builtin_shuffle(table.parts[0], index);
  if constexpr (kLanes == 16) return found;
  return (index << 28) < 0 ? __builtin_shuffle(table.parts[16 / kLanes - 1], index) : found;
#else
  float values[16];
  std::memcpy(values, table.parts, sizeof values);
  FloatVector found;
  for (int lane = 0; lane < kLanes; ++lane) found[lane] = values[index[lane] & 15];
  return found;
#endif
}

// Looks up kLanes codes: every group of eight lanes gets its four bytes as one word, and each lane shifts its
// code down.
inline FloatVector look_up_run(const Table& table, const std::uint8_t* codes) {
  IntVector shifts, in_second_group;
  for (int lane = 0; lane < kLanes; ++lane) {
    shifts[lane] = 8 * (lane % 8 / 2) + (lane % 2 ? 0 : 4);
    in_second_group[lane] = lane < 8 ? 0 : -1;
  }
  std::int32_t words[2] = {};
  std::memcpy(words, codes, kLanes / 2);
  const IntVector first = IntVector{} + words[0];
  return look_up(table,
                 (kLanes == 16 ? (in_second_group ? IntVector{} + words[1] : first) : first) >> shifts);
}

// Flat elements [first, last) of one block.
void dequantize_in_block(const Table& table, const std::uint8_t* codes, std::int64_t first, std::int64_t last,
                         float* out) {
  while (first < last) {
    if (first % 2 == 0 && first + kLanes <= last) {
      store(out, look_up_run(table, codes + first / 2));
      first += kLanes;
      out += kLanes;
    } else {
      const int code = first % 2 ? codes[first / 2] & 15 : codes[first / 2] >> 4;
      *out++ = look_up(table, IntVector{} + code)[0];
      ++first;
    }
  }
}

// Callers walk down the rows of a weight, a few codes of each: a pattern no prefetcher of the hardware sees.
constexpr std::int64_t kRowsAhead = 16;

template <typename T>
float to_float(T value);
template <>
float to_float(float value) {
  return value;
}
template <>
float to_float(BFloat16Bits value) {
  return bfloat16_to_float(value);
}

// The largest magnitude of a block; NaN if any value is.
float largest_magnitude(const float* values) {
  FloatVector largest = {};
  IntVector has_nan = {};
  for (int i = 0; i < kNf4BlockSize; i += kLanes) {
    const FloatVector value = load(values + i);
    const FloatVector magnitude = value < 0.0f ? -value : value;
    largest = magnitude > largest ? magnitude : largest;
    has_nan |= value != value;
  }
  float result = 0.0f;
  bool any_nan = false;
  for (int lane = 0; lane < kLanes; ++lane) {
    result = largest[lane] > result ? largest[lane] : result;
    any_nan |= has_nan[lane] != 0;
  }
  return any_nan ? __builtin_nanf("") : result;
}

// Packs the codes of a block, two to a byte.
void store_codes(const std::int32_t* counts, std::uint8_t* codes) {
  for (int i = 0; i < kNf4BlockSize / 2; ++i) {
    codes[i] = static_cast<std::uint8_t>(counts[2 * i] << 4 | counts[2 * i + 1]);
  }
}

// Number of bounds below each value: 15 less those not below it, which makes a NaN 15.
void count_bounds(const float* scaled, std::int32_t* counts) {
  for (int i = 0; i < kNf4BlockSize; i += kLanes) {
    const FloatVector value = load(scaled + i);
    IntVector count = {};
    count += 15;
    for (int j = 0; j < 15; ++j) count += value <= kNf4Bounds.data[j];  // a true lane is -1
    std::memcpy(counts + i, &count, sizeof count);
  }
}

template <typename T>
void quantize_whole_block(const T* weight, std::uint8_t* codes, float* absmax) {
  float values[kNf4BlockSize];
  for (int i = 0; i < kNf4BlockSize; ++i) values[i] = to_float(weight[i]);
  *absmax = largest_magnitude(values);
  const float inverse = 1.0f / (*absmax < kSmallestAbsmax ? kSmallestAbsmax : *absmax);
  for (int i = 0; i < kNf4BlockSize; i += kLanes) store(values + i, load(values + i) * inverse);
  std::int32_t counts[kNf4BlockSize];
  count_bounds(values, counts);
  store_codes(counts, codes);
}

// The last block of fewer than 64 values; zeros fill it up.
template <typename T>
void quantize_short_block(const T* weight, int num_values, std::uint8_t* codes, float* absmax) {
  float values[kNf4BlockSize] = {};
  for (int i = 0; i < num_values; ++i) values[i] = to_float(weight[i]);
  const float largest = largest_magnitude(values);
  *absmax = largest < kSmallestAbsmax ? kSmallestAbsmax : largest;
  for (int i = 0; i < num_values; ++i) values[i] = values[i] / *absmax;
  std::int32_t counts[kNf4BlockSize];
  count_bounds(values, counts);
  std::uint8_t whole[kNf4BlockSize / 2];
  store_codes(counts, whole);
  std::memcpy(codes, whole, static_cast<std::size_t>((num_values + 1) / 2));
}

template <typename T>
void quantize_blocks(const T* weight, std::int64_t num_weights, std::int64_t first_block,
                     std::int64_t last_block, std::uint8_t* codes, float* absmax) {
  for (std::int64_t block = first_block; block < last_block; ++block) {
    const std::int64_t start = block * kNf4BlockSize;
    const std::int64_t left = num_weights - start;
    if (left >= kNf4BlockSize) {
      quantize_whole_block(weight + start, codes + start / 2, absmax + block);
    } else {
      quantize_short_block(weight + start, static_cast<int>(left), codes + start / 2, absmax + block);
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

void nf4_dequantize_floats(const Nf4View& weight, std::int64_t first, std::int64_t last, bool to_bfloat16,
                           float* out) {
  while (first < last) {
    const std::int64_t block = first / kNf4BlockSize;
    const std::int64_t block_end = (block + 1) * kNf4BlockSize;
    const std::int64_t end = block_end < last ? block_end : last;
    dequantize_in_block(block_table(block_scale(weight, block), to_bfloat16), weight.codes, first, end, out);
    out += end - first;
    first = end;
  }
}

void nf4_dequantize_runs(const Nf4View& weight, std::int64_t row, std::int64_t column0,
                         std::int64_t num_columns, bool to_bfloat16, std::int64_t width,
                         std::int64_t run_stride, float* out) {
  const std::int64_t first = row * weight.num_columns + column0;
  for (std::int64_t i = first; i < first + num_columns; i += kNf4BlockSize) {
    const Table table = block_table(block_scale(weight, i / kNf4BlockSize), to_bfloat16);
    const std::uint8_t* codes = weight.codes + i / 2;
    __builtin_prefetch(codes + kRowsAhead * weight.num_columns / 2);
    for (std::int64_t run = 0; run < kNf4BlockSize; run += width, out += run_stride) {
      for (std::int64_t j = 0; j < width; j += kLanes) {
        store(out + j, look_up_run(table, codes + (run + j) / 2));
      }
    }
  }
}

void nf4_dequantize_transposed(const Nf4View& weight, std::int64_t row0, std::int64_t num_rows,
                               std::int64_t k0, std::int64_t num_k, bool to_bfloat16, std::int64_t width,
                               float* out) {
  constexpr int kCodesPerWord = 8;
  const Table table = codebook();
  const std::int64_t blocks_per_row = weight.num_columns / kNf4BlockSize;
  FloatVector scales = {};
  for (std::int64_t k = k0; k < k0 + num_k; k += kCodesPerWord * kLanes) {
    FloatVector words[kLanes];
    for (int r = 0; r < kLanes; ++r) {
      const std::uint8_t* codes = weight.codes + ((row0 + r) * weight.num_columns + k) / 2;
      __builtin_prefetch(codes + kRowsAhead * weight.num_columns / 2);
      words[r] = r < num_rows ? load_bits(codes) : FloatVector{};
    }
    transpose(words);
    for (int word = 0; word < kLanes; ++word) {
      if (word * kCodesPerWord % kNf4BlockSize == 0) {
        float values[kLanes] = {};
        const std::int64_t block = row0 * blocks_per_row + (k + word * kCodesPerWord) / kNf4BlockSize;
        for (std::int64_t r = 0; r < num_rows; ++r)
          values[r] = block_scale(weight, block + r * blocks_per_row);
        scales = load(values);
        scales = scales == scales ? scales : FloatVector{} + __builtin_nanf("");  // for round_plain
      }
      const IntVector codes = reinterpret_cast<IntVector>(words[word]);
#pragma GCC unroll 8
      for (int i = 0; i < kCodesPerWord; ++i, out += width) {
        const FloatVector value = look_up(table, codes >> (i % 2 ? 4 * i - 4 : 4 * i + 4)) * scales;
        store(out, to_bfloat16 ? round_plain_to_bfloat16(value) : value);
      }
    }
  }
}

void nf4_dequantize(const Nf4View& weight, std::int64_t first, std::int64_t last, DType out_dtype,
                    void* out) {
  if (out_dtype == DType::kFloat32) {
    return nf4_dequantize_floats(weight, first, last, false, static_cast<float*>(out));
  }
  BFloat16Bits* to = static_cast<BFloat16Bits*>(out);
  constexpr int kRun = 8 * kNf4BlockSize;
  while (first < last) {
    const std::int64_t end = first + kRun < last ? first + kRun : last;
    float values[kRun];
    nf4_dequantize_floats(weight, first, end, true, values);
    std::uint32_t bits[kRun];
    std::memcpy(bits, values, sizeof bits);
    for (int i = 0; i < end - first; ++i)
      to[i] = static_cast<BFloat16Bits>(bits[i] >> 16);  // already rounded
    to += end - first;
    first = end;
  }
}

}  // namespace pyft::cpu::PYFT_ISA
