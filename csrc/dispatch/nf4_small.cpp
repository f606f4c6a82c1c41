#include "pyft/nf4_small.h"

#include <algorithm>

#include "pyft/error.h"

namespace pyft {
namespace {

std::int64_t ceil_div(std::int64_t value, std::int64_t unit) { return (value + unit - 1) / unit; }

}  // namespace

Nf4SmallConfig choose_nf4_small(const Nf4SmallShape& shape, int num_multiprocessors) {
  check(shape.num_tokens > 0 && shape.num_tokens <= kNf4SmallMostTokens && shape.num_rows > 0 &&
            shape.num_columns > 0 && num_multiprocessors > 0,
        "choose_nf4_small: ", shape.num_tokens, " tokens, a weight [", shape.num_rows, ", ",
        shape.num_columns, "] and ", num_multiprocessors, " multiprocessors, expected 1 to ",
        kNf4SmallMostTokens, " tokens and no zeros");
  Nf4SmallConfig config;
  config.token_tiles = 1;
  while (8 * config.token_tiles < shape.num_tokens) config.token_tiles *= 2;
  config.tile = nf4_small_tile(shape.is_backward);
  config.step = nf4_small_step(shape.is_backward);
  config.num_stages = nf4_small_stages(config.token_tiles);
  config.shared_bytes = nf4_small_shared_bytes(shape.is_backward, config.token_tiles);
  config.num_tiles = ceil_div(shape.is_backward ? shape.num_columns : shape.num_rows, config.tile);
  config.num_steps = ceil_div(shape.is_backward ? shape.num_rows : shape.num_columns, config.step);
  // A block's sums cost as much as the weights of a few units: fewer blocks where they would have less.
  const std::int64_t least_units = std::max(4, config.token_tiles);
  const std::int64_t most_blocks =
      std::max<std::int64_t>(1, config.num_tiles * config.num_steps / least_units);
  config.num_blocks = static_cast<int>(std::min<std::int64_t>(
      nf4_small_blocks_per_multiprocessor(config.token_tiles) * num_multiprocessors, most_blocks));
  const bool has_whole_tiles = config.num_tiles % config.num_blocks == 0;
  config.workspace_floats = has_whole_tiles ? 0 : config.num_blocks * 2 * shape.num_tokens * config.tile;
  return config;
}

}  // namespace pyft
