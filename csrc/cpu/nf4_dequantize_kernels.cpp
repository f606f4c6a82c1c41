// NF4 dequantise of one instruction set (nf4_format.h draws the layout): per block the 16 products
// codebook * absmax, rounded to the wanted dtype, then a look-up per nibble. Bit-equal to bitsandbytes on the
// CPU, so: compiled without contraction into fused multiply-adds, each product and sum rounded by itself.
#include <cstdint>
#include <cstring>

#include "cpu/kernel_table.h"
#include "cpu/vector.h"
#include "pyft/nf4_format.h"

namespace pyft::cpu::PYFT_ISA {
namespace {

// Packing walks down the rows of a weight, a few codes of each: a pattern no prefetcher of the hardware sees.
constexpr std::int64_t kRowsAhead = 16;

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
#ifdef PYFT_VECTOR_LOOK_UP
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

// A whole block of bfloat16 from a table of such values: a lane takes a byte's two codes, and holds both
// results as they lie in memory, the even element in its lower half.
inline void dequantize_whole_block(const Table& table, const std::uint8_t* codes, BFloat16Bits* out) {
  for (int i = 0; i < kNf4BlockSize / 2; i += kLanes) {
    const IntVector index = load_wide(codes + i);
    const BitsVector pairs = reinterpret_cast<BitsVector>(look_up(table, index >> 4)) >> 16 |
                             reinterpret_cast<BitsVector>(look_up(table, index));
    std::memcpy(out + 2 * i, &pairs, sizeof pairs);
  }
}

inline void dequantize_whole_block(const Table& table, const std::uint8_t* codes, float* out) {
#pragma GCC unroll 16
  for (int i = 0; i < kNf4BlockSize; i += kLanes) store(out + i, look_up_run(table, codes + i / 2));
}

// Flat elements [first, last) of one block.
void dequantize_in_block(const Table& table, const std::uint8_t* codes, std::int64_t first, std::int64_t last,
                         float* out) {
  const auto look_up_one = [&](std::int64_t i) {
    return look_up(table, IntVector{} + (i % 2 ? codes[i / 2] & 15 : codes[i / 2] >> 4))[0];
  };
  if (first % 2 && first < last) *out++ = look_up_one(first++);
  for (; first + kLanes <= last; first += kLanes, out += kLanes) {
    store(out, look_up_run(table, codes + first / 2));
  }
  for (; first < last; ++first) *out++ = look_up_one(first);
}

}  // namespace

void nf4_dequantize_floats(const Nf4View& weight, std::int64_t first, std::int64_t last, bool to_bfloat16,
                           float* out) {
  while (first < last) {
    const std::int64_t block = first / kNf4BlockSize;
    const std::int64_t block_end = (block + 1) * kNf4BlockSize;
    const std::int64_t end = block_end < last ? block_end : last;
    const Table table = block_table(block_scale(weight, block), to_bfloat16);
    if (end - first == kNf4BlockSize) {
      dequantize_whole_block(table, weight.codes + first / 2, out);
    } else {
      dequantize_in_block(table, weight.codes, first, end, out);
    }
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
  for (; first < last; first += kNf4BlockSize, to += kNf4BlockSize) {
    const Table table = block_table(block_scale(weight, first / kNf4BlockSize), true);
    const std::uint8_t* codes = weight.codes + first / 2;
    if (last - first >= kNf4BlockSize) {
      dequantize_whole_block(table, codes, to);
      continue;
    }
    float values[kNf4BlockSize];
    dequantize_in_block(table, weight.codes, first, last, values);
    for (std::int64_t i = 0; i < last - first; ++i) to[i] = float_to_bfloat16(values[i]);
  }
}

}  // namespace pyft::cpu::PYFT_ISA
