// Half a block of NF4 at a time, from codes to values in order: the 16 values that codes can stand for are
// computed once for each block of 64, scaled and, for bfloat16, rounded; then each code looks its value up.
// Included by sources compiled once per instruction set; AVX2 has its own way, nf4_planes.h.
//
// Products are rounded as written even where the compiler may contract: nothing is added to them here. Scales
// come ready made, because their sum must not be contracted.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/vector.h"
#include "pyft/dtype.h"
#include "pyft/nf4_format.h"

namespace pyft::cpu::PYFT_ISA {

// Who walks down the rows of a weight, a few codes of each, fetches ahead: no prefetcher of the hardware sees
// such a pattern.
constexpr std::int64_t kRowsAhead = 16;

constexpr int kHalfBlock = kNf4BlockSize / 2;
constexpr int kHalfVectors = kHalfBlock / kLanes;

// The 16 values that codes stand for, in registers: of the codebook, or of one block.
struct Table {
  FloatVector parts[16 / kLanes];
};

static inline Table codebook() {
  Table table;
  for (int i = 0; i < 16; i += kLanes) table.parts[i / kLanes] = load(kNf4Codebook + i);
  return table;
}

static inline Table block_table(float scale, bool to_bfloat16) {
  Table table = codebook();
  for (FloatVector& part : table.parts) {
    part *= scale;
    if (to_bfloat16) part = round_to_bfloat16(part);
  }
  return table;
}

// Lane by lane, the entry that the low four bits of `index` name.
static inline FloatVector look_up(const Table& table, IntVector index) {
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
static inline FloatVector look_up_run(const Table& table, const std::uint8_t* codes) {
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

}  // namespace pyft::cpu::PYFT_ISA

#if defined(__AVX2__) && PYFT_VECTOR_BYTES == 32
#define PYFT_NF4_PLANES
#include "cpu/nf4_planes.h"
#else

namespace pyft::cpu::PYFT_ISA {

// A block's 16 values.
template <bool kRounds>
struct BlockTable {
  Table values;
};

template <bool kRounds>
class BlockDecoder {
 public:
  void fill(const float* scales, std::int64_t num_blocks, BlockTable<kRounds>* tables) const {
    for (std::int64_t i = 0; i < num_blocks; ++i) tables[i].values = block_table(scales[i], kRounds);
  }

  void decode_half(const BlockTable<kRounds>& table, const std::uint8_t* codes,
                   FloatVector (&values)[kHalfVectors]) const {
    for (int i = 0; i < kHalfVectors; ++i) {
      values[i] = look_up_run(table.values, codes + i * kLanes / 2);
    }
  }

  void decode_half(const BlockTable<kRounds>& table, const std::uint8_t* codes, float* out) const {
    FloatVector values[kHalfVectors];
    decode_half(table, codes, values);
#pragma GCC unroll 8
    for (int v = 0; v < kHalfVectors; ++v) store(out + v * kLanes, values[v]);
  }

  // A lane takes a byte's two codes, and holds both results as they lie in memory, the even element in its
  // lower half.
  void decode_half(const BlockTable<kRounds>& table, const std::uint8_t* codes, BFloat16Bits* out) const {
    for (int i = 0; i < kHalfBlock / 2; i += kLanes) {
      const IntVector index = load_wide(codes + i);
      const BitsVector pairs = reinterpret_cast<BitsVector>(look_up(table.values, index >> 4)) >> 16 |
                               reinterpret_cast<BitsVector>(look_up(table.values, index));
      std::memcpy(out + 2 * i, &pairs, sizeof pairs);
    }
  }
};

}  // namespace pyft::cpu::PYFT_ISA

#endif
