// What the host parts of the LoRA kernels share.
#pragma once

#include <type_traits>

#include "cuda/device/lora_products.h"

namespace pyft::cuda {

constexpr std::int64_t kMostRanks = 64;  // of one launch; larger ranks go in slices

// run(tiles) with how many tiles of 8 ranks a kernel for this rank is compiled for, as an integral_constant.
template <typename Run>
void with_rank_tiles(std::int64_t rank, const Run& run) {
  if (rank <= 16) {
    run(std::integral_constant<int, 2>());
  } else if (rank <= 32) {
    run(std::integral_constant<int, 4>());
  } else {
    run(std::integral_constant<int, 8>());
  }
}

// [P, rows, columns] of a workspace, or one part that is the result itself.
struct PartsOfSum {
  float* data;
  std::int64_t num_parts, part_stride;
};
inline PartsOfSum parts_of(const TensorRef& workspace, const TensorRef& result) {
  const TensorRef& target = workspace.defined ? workspace : result;
  return {target.as<float>(), workspace.defined ? workspace.shape[0] : 1, result.num_elements()};
}

// result = the sum of the workspace's parts, in their order; nothing to do without a workspace.
void launch_lora_sum(const TensorRef& workspace, const TensorRef& result, const Queue& queue);

// result = scale * drop(wide) factor^T, [T, R].
void launch_lora_project(const TensorRef& wide, const LoraFactor& factor, const TensorRef& result,
                         const TensorRef& workspace, double scaling, const Dropout& dropout,
                         const Queue& queue);

}  // namespace pyft::cuda
