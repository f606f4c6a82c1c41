// gemm of one instruction set against sums in double: every orientation and element type, sizes around the
// edges of tiles and blocks. Prints the first product that misses the bound of bfloat16_pairs.h and exits 1.
// Built with -DPYFT_VECTOR_BYTES=64 -DPYFT_BFLOAT16_PAIRS it runs AVX512_BF16's packing and tiles anywhere.
#include "cpu/gemm.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cpu/bfloat16_pairs.h"
#include "cpu/kernel_table.h"

namespace pyft::cpu::PYFT_ISA {
namespace {

using Kind = MatrixView::Kind;

// A matrix [rows, columns] of one kind, stored as it is or transposed, and its values.
struct Operand {
  Operand(std::int64_t rows, std::int64_t columns, Kind kind, bool transposed, bool to_bfloat16)
      : values(static_cast<std::size_t>(rows * columns)), num_columns(columns) {
    const std::int64_t stored_rows = transposed ? columns : rows, width = transposed ? rows : columns;
    const std::int64_t size = rows * columns;
    std::vector<float> stored(values.size());
    for (float& value : stored) value = static_cast<float>(std::rand()) / RAND_MAX - 0.5f;
    if (kind == Kind::kNf4) {
      codes.resize(stored.size() / 2 + 1);
      absmax.resize(stored.size() / 64 + 1);
      nf4_quantize(stored.data(), DType::kFloat32, size, 0, (size + 63) / 64, codes.data(), absmax.data());
      nf4.codes = codes.data();
      nf4.absmax = absmax.data();
      nf4.num_rows = stored_rows;
      nf4.num_columns = width;
      nf4_dequantize_floats(nf4, 0, size, to_bfloat16, stored.data());
      view = nf4_view(nf4, to_bfloat16);
    } else if (kind == Kind::kBFloat16) {
      for (float& value : stored) {
        bits.push_back(float_to_bfloat16(value));
        value = bfloat16_to_float(bits.back());
      }
      view = dense_view(bits.data(), DType::kBFloat16, width);
    } else {
      floats = stored;
      view = dense_view(floats.data(), DType::kFloat32, width);
    }
    if (transposed) view = pyft::cpu::transposed(view);
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t j = 0; j < columns; ++j) {
        values[i * columns + j] = stored[transposed ? j * width + i : i * width + j];
      }
    }
  }
  Operand(const Operand&) = delete;  // the view points into it

  double at(std::int64_t i, std::int64_t j) const { return values[i * num_columns + j]; }

  std::vector<float> values, floats, absmax;
  std::vector<BFloat16Bits> bits;
  std::vector<std::uint8_t> codes;
  Nf4View nf4{};
  MatrixView view{};
  std::int64_t num_columns;
};

void check(std::int64_t m, std::int64_t n, std::int64_t k, const Operand& a, const Operand& b,
           bool accumulate, const char* what) {
  const std::int64_t ldc = n + 3;
  std::vector<float> c(static_cast<std::size_t>(m * ldc), accumulate ? 2.0f : NAN);
  PYFT_ISA::gemm(m, n, k, a.view, b.view, c.data(), ldc, accumulate);
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < ldc; ++j) {
      double sum = accumulate ? 2.0 : 0.0, size = sum;
      for (std::int64_t kk = 0; kk < k && j < n; ++kk) {
        sum += a.at(i, kk) * b.at(kk, j);
        size += std::fabs(a.at(i, kk) * b.at(kk, j));
      }
      const float found = c[i * ldc + j];
      const double bound = static_cast<double>(k + 1) * (std::ldexp(size, -24) + std::ldexp(1.0, -126));
      const bool untouched = accumulate ? found == 2.0f : std::isnan(found);
      if (j < n ? std::fabs(found - sum) <= bound : untouched) continue;
      std::printf("%s %ld x %ld x %ld: c[%ld, %ld] is %.9g, expected %.9g\n", what, long(m), long(n), long(k),
                  long(i), long(j), found, sum);
      std::exit(1);
    }
  }
}

// Denormals count as zero in pairs, and only there.
void check_denormals() {
  constexpr std::int64_t kRows = 9, kInner = 3;  // more rows than are worked on without packing
  const std::vector<BFloat16Bits> ones(kRows * kInner, 0x3f80), tiny(kInner, 0x0001);
  float c[kRows];
  PYFT_ISA::gemm(kRows, 1, kInner, dense_view(ones.data(), DType::kBFloat16, kInner),
                 dense_view(tiny.data(), DType::kBFloat16, 1), c, 1, false);
  const float expected = kMultipliesPairs ? 0.0f : kInner * bfloat16_to_float(0x0001);
  if (c[kRows - 1] == expected) return;
  std::printf("sum of denormals is %g, expected %g\n", c[kRows - 1], expected);
  std::exit(1);
}

void check_all() {
  constexpr std::int64_t kShapes[][3] = {{1, 1, 1},     {1, 64, 64},    {2, 65, 63},    {5, 33, 128},
                                         {9, 31, 1},    {13, 128, 257}, {16, 192, 320}, {24, 64, 512},
                                         {25, 40, 259}, {133, 96, 130}, {150, 513, 64}, {1, 64, 131},
                                         {2, 192, 65},  {3, 128, 129},  {4, 64, 192}};
  for (const auto& [m, n, k] : kShapes) {
    for (int choice = 0; choice < 16; ++choice) {
      const bool a_transposed = choice & 1, b_transposed = choice & 2, bfloat16 = choice & 4;
      const Kind dense = bfloat16 ? Kind::kBFloat16 : Kind::kFloat32;
      const Operand a(m, k, dense, a_transposed, bfloat16);
      const Operand b(k, n, choice & 8 ? Kind::kNf4 : dense, b_transposed, bfloat16);
      check(m, n, k, a, b, choice % 3 == 0, bfloat16 ? "bfloat16" : "float32");
    }
  }
  check_denormals();
}

}  // namespace
}  // namespace pyft::cpu::PYFT_ISA

int main() {
  pyft::cpu::PYFT_ISA::check_all();
  std::printf("all right\n");
}
