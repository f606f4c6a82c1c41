// An NF4 weight as a kernel sees it, and the tables of the format as kernel parameters: a constant array of
// the host has no address on the device.
#pragma once

#include "cuda/device/platform.h"
#include "pyft/nf4_format.h"
#include "pyft/ops.h"

namespace pyft::cuda {

struct Nf4Codebook {
  float data[16];
};
inline Nf4Codebook nf4_codebook() {
  Nf4Codebook codebook;
  for (int i = 0; i < 16; ++i) codebook.data[i] = kNf4Codebook[i];
  return codebook;
}

// Either absmax or the three nested parts are given.
struct Nf4Source {
  const std::uint8_t* codes;
  const float* absmax;
  const std::uint8_t* absmax_codes;
  const float* nested_absmax;
  const float* offset;
};
inline Nf4Source nf4_source(const Nf4Tensors& weight) {
  Nf4Source source{};
  source.codes = weight.codes.as<const std::uint8_t>();
  if (weight.absmax.defined) {
    source.absmax = weight.absmax.as<const float>();
  } else {
    source.absmax_codes = weight.absmax_codes.as<const std::uint8_t>();
    source.nested_absmax = weight.nested_absmax.as<const float>();
    source.offset = weight.offset.as<const float>();
  }
  return source;
}

// absmax of a block, rounded as nf4_format.h says. `absmax_map` is read only of a nested weight.
__device__ __forceinline__ float block_absmax(const Nf4Source& weight, const float* absmax_map,
                                              std::int64_t block) {
  if (weight.absmax) return weight.absmax[block];
  const float centred =
      __fmul_rn(absmax_map[weight.absmax_codes[block]], weight.nested_absmax[block / kNestedBlockSize]);
  return __fadd_rn(centred, *weight.offset);
}

}  // namespace pyft::cuda
