// NF4 dequantise of one instruction set (nf4_format.h draws the layout): per block the 16 products
// codebook * absmax, rounded to the wanted dtype, then a look-up per nibble. Bit-equal to bitsandbytes on the
// CPU, so: compiled without contraction into fused multiply-adds, each product and sum rounded by itself.
#include <cstdint>
#include <cstring>

#include "cpu/kernel_table.h"
#include "cpu/nf4_block.h"
#include "cpu/vector.h"
#include "pyft/nf4_format.h"

namespace pyft::cpu::PYFT_ISA {
namespace {

constexpr std::int64_t kTablesAtOnce = 8;

float block_scale(const Nf4View& weight, std::int64_t block) {
  if (weight.absmax) return weight.absmax[block];
  const float centred =
      kDynamicMap.data[weight.absmax_codes[block]] * weight.nested_absmax[block / kNestedBlockSize];
  return centred + weight.offset;
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

template <bool kRounds>
struct Tables {
  // Of blocks first_block, first_block + stride, ..., at most kTablesAtOnce.
  void fill(const Nf4View& weight, std::int64_t first_block, std::int64_t stride, std::int64_t num_blocks) {
    float scales[kTablesAtOnce];
    nf4_block_scales(weight, first_block, stride, num_blocks, scales);
    decoder.fill(scales, num_blocks, of_block);
  }

  BlockDecoder<kRounds> decoder;
  BlockTable<kRounds> of_block[kTablesAtOnce];
};

inline std::int64_t at_most(std::int64_t limit, std::int64_t count) { return count < limit ? count : limit; }

// Whole blocks from flat element `first` on, to float32 or bfloat16; returns how many.
template <bool kRounds, typename Out>
std::int64_t dequantize_blocks(const Nf4View& weight, std::int64_t first, std::int64_t last, Out* out) {
  Tables<kRounds> tables;
  const std::int64_t num_blocks = (last - first) / kNf4BlockSize;
  const std::uint8_t* codes = weight.codes + first / 2;
  for (std::int64_t block0 = 0; block0 < num_blocks; block0 += kTablesAtOnce) {
    const std::int64_t count = at_most(kTablesAtOnce, num_blocks - block0);
    tables.fill(weight, first / kNf4BlockSize + block0, 1, count);
    for (std::int64_t half = 0; half < 2 * count; ++half, codes += kHalfBlock / 2, out += kHalfBlock) {
      tables.decoder.decode_half(tables.of_block[half / 2], codes, out);
    }
  }
  return num_blocks;
}

template <bool kRounds>
void dequantize_floats(const Nf4View& weight, std::int64_t first, std::int64_t last, float* out) {
  while (first < last) {
    const std::int64_t block = first / kNf4BlockSize;
    if (first % kNf4BlockSize == 0 && last - first >= kNf4BlockSize) {
      const std::int64_t done = dequantize_blocks<kRounds>(weight, first, last, out) * kNf4BlockSize;
      first += done;
      out += done;
      continue;
    }
    const std::int64_t end = at_most(last, (block + 1) * kNf4BlockSize);
    dequantize_in_block(block_table(block_scale(weight, block), kRounds), weight.codes, first, end, out);
    out += end - first;
    first = end;
  }
}

template <bool kRounds, int kRunVectors>
void dequantize_runs(const Nf4View& weight, std::int64_t row0, std::int64_t num_rows, std::int64_t column0,
                     std::int64_t num_columns, float* out) {
  constexpr std::int64_t kWidth = kRunVectors * kLanes;
  Tables<kRounds> tables;
  for (std::int64_t first_row = 0; first_row < num_rows; first_row += kTablesAtOnce) {
    const std::int64_t count = at_most(kTablesAtOnce, num_rows - first_row);
    float* to = out + first_row * kWidth;
    for (std::int64_t column = column0; column < column0 + num_columns; column += kNf4BlockSize) {
      const std::int64_t first = (row0 + first_row) * weight.num_columns + column;
      tables.fill(weight, first / kNf4BlockSize, weight.num_columns / kNf4BlockSize, count);
      const std::uint8_t* codes = weight.codes + first / 2;
      for (std::int64_t r = 0; r < count; ++r, codes += weight.num_columns / 2) {
        __builtin_prefetch(codes + kRowsAhead * weight.num_columns / 2);
        float* run = to + r * kWidth;
        for (int half = 0; half < 2; ++half) {
          FloatVector values[kHalfVectors];
          tables.decoder.decode_half(tables.of_block[r], codes + half * kHalfBlock / 2, values);
#pragma GCC unroll 8
          for (int v = 0; v < kHalfVectors; ++v) {
            store(run + v / kRunVectors * num_rows * kWidth + v % kRunVectors * kLanes, values[v]);
          }
          run += kHalfVectors / kRunVectors * num_rows * kWidth;
        }
      }
      to += kNf4BlockSize * num_rows;
    }
  }
}

}  // namespace

void nf4_block_scales(const Nf4View& weight, std::int64_t first_block, std::int64_t stride,
                      std::int64_t num_blocks, float* out) {
  for (std::int64_t i = 0; i < num_blocks; ++i) out[i] = block_scale(weight, first_block + i * stride);
}

void nf4_dequantize_floats(const Nf4View& weight, std::int64_t first, std::int64_t last, bool to_bfloat16,
                           float* out) {
  (to_bfloat16 ? dequantize_floats<true> : dequantize_floats<false>)(weight, first, last, out);
}

void nf4_dequantize_runs(const Nf4View& weight, std::int64_t row0, std::int64_t num_rows,
                         std::int64_t column0, std::int64_t num_columns, bool to_bfloat16, std::int64_t width,
                         float* out) {
  const auto run = width == kLanes ? (to_bfloat16 ? dequantize_runs<true, 1> : dequantize_runs<false, 1>)
                                   : (to_bfloat16 ? dequantize_runs<true, 2> : dequantize_runs<false, 2>);
  run(weight, row0, num_rows, column0, num_columns, out);
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
  const std::int64_t done = dequantize_blocks<true>(weight, first, last, to) * kNf4BlockSize;
  first += done;
  if (first == last) return;
  float values[kNf4BlockSize];
  dequantize_in_block(block_table(block_scale(weight, first / kNf4BlockSize), true), weight.codes, first,
                      last, values);
  for (std::int64_t i = 0; i < last - first; ++i) to[done + i] = float_to_bfloat16(values[i]);
}

}  // namespace pyft::cpu::PYFT_ISA
