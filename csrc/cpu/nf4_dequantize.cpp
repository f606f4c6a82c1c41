// NF4 dequantisation on the CPU: runs of whole blocks over the threads.
#include <algorithm>
#include <cstdint>

#include "cpu/isa.h"
#include "cpu/operations.h"
#include "cpu/parallel.h"
#include "cpu/weight_panel.h"
#include "pyft/nf4_format.h"

namespace pyft::cpu {
namespace {
constexpr std::int64_t kBlocksPerPiece = 1024;
}

void nf4_dequantize(const Nf4DequantizeArgs& args, int num_threads) {
  const KernelTable& table = kernels();
  const Nf4View weight = nf4_pointers(args.weight);
  const std::int64_t width = args.out.shape[1];
  const int element_bytes = dtype_bytes(args.out.dtype);
  const std::int64_t grain = kBlocksPerPiece * kNf4BlockSize;
  const std::int64_t first = args.first_row * weight.num_columns + args.first_column;
  if (width < weight.num_columns) {
    const std::int64_t rows_per_piece = std::max<std::int64_t>(1, grain / std::max<std::int64_t>(1, width));
    parallel_for(num_threads, args.out.shape[0], rows_per_piece, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        const std::int64_t at = first + row * weight.num_columns;
        table.nf4_dequantize(weight, at, at + width, args.out.dtype,
                             args.out.as<char>() + row * width * element_bytes);
      }
    });
    return;
  }
  parallel_for(num_threads, args.out.num_elements(), grain, [&](std::int64_t begin, std::int64_t end) {
    table.nf4_dequantize(weight, first + begin, first + end, args.out.dtype,
                         args.out.as<char>() + begin * element_bytes);
  });
}

}  // namespace pyft::cpu
