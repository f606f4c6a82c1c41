// NF4 dequantisation on the CPU: runs of whole blocks over the threads. A large output asks for huge pages
// (huge_pages.h) and is cut into pieces of several such pages, so that threads do not clear one page
// together.
#include <algorithm>
#include <cstdint>

#include "cpu/huge_pages.h"
#include "cpu/isa.h"
#include "cpu/operations.h"
#include "cpu/parallel.h"
#include "cpu/weight_panel.h"
#include "pyft/nf4_format.h"

namespace pyft::cpu {
namespace {

constexpr std::int64_t kBlocksPerPiece = 1024;
constexpr std::int64_t kLargestPieceBytes = 4 * kHugePageBytes;

// Elements of a piece, in whole blocks: about four pieces a thread, neither small nor very large ones.
std::int64_t piece_size(std::int64_t num_elements, int element_bytes, int num_threads) {
  const std::int64_t share = num_elements / (4 * static_cast<std::int64_t>(std::max(1, num_threads)));
  const std::int64_t blocks = std::min(share, kLargestPieceBytes / element_bytes) / kNf4BlockSize;
  return std::max(kBlocksPerPiece, blocks) * kNf4BlockSize;
}

}  // namespace

void nf4_dequantize(const Nf4DequantizeArgs& args, int num_threads) {
  const KernelTable& table = kernels();
  const Nf4View weight = nf4_pointers(args.weight);
  const std::int64_t width = args.out.shape[1];
  const int element_bytes = dtype_bytes(args.out.dtype);
  const std::int64_t grain = piece_size(args.out.num_elements(), element_bytes, num_threads);
  const std::int64_t first = args.first_row * weight.num_columns + args.first_column;
  prefer_huge_pages(args.out.data, args.out.num_elements() * element_bytes);
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
