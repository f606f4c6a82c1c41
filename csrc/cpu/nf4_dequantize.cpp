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
  const std::int64_t num_weights = weight.num_rows * weight.num_columns;
  const int element_bytes = dtype_bytes(args.out.dtype);
  const std::int64_t grain = kBlocksPerPiece * kNf4BlockSize;
  parallel_for(num_threads, num_weights, grain, [&](std::int64_t begin, std::int64_t end) {
    table.nf4_dequantize(weight, begin, end, args.out.dtype, args.out.as<char>() + begin * element_bytes);
  });
}

}  // namespace pyft::cpu
