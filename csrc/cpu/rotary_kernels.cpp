// The rotary embedding of one token's heads. Compiled once per instruction set (rule in kernels.h).
//
//     low  = x[i],  high = x[i + h],  h = R / 2
//     y[i] = low cos[i] - high sin[i]              transposed:  low cos[i] + high sin[i + h]
//     y[i + h] = high cos[i + h] + low sin[i + h]               high cos[i + h] - low sin[i]
//
//     | low  0 .. h-1 | high  h .. R-1 | copied  R .. D-1 |      one head
#include <cstring>

#include "cpu/kernel_table.h"
#include "cpu/rows.h"

namespace pyft::cpu::PYFT_ISA {
namespace {

template <typename T>
void rotate(const TokenHeads& heads, const T* cos, const T* sin, bool transposed) {
  const std::int64_t half = heads.rotated / 2;
  const float sign = transposed ? -1.0f : 1.0f;
  // The transpose takes the sines of the other half, and changes their sign.
  const T* const low_sin = transposed ? sin + half : sin;
  const T* const high_sin = transposed ? sin : sin + half;
  for (std::int64_t head = 0; head < heads.num_heads; ++head) {
    const T* const x = static_cast<const T*>(heads.in) + head * heads.in_stride;
    T* const y = static_cast<T*>(heads.out) + head * heads.out_stride;
    for_each_vector(half, [=](std::int64_t i, auto extent) {
      const FloatVector low = load(x + i, extent), high = load(x + half + i, extent);
      store(y + i, low * load(cos + i, extent) - high * (load(low_sin + i, extent) * sign), extent);
      store(y + half + i, high * load(cos + half + i, extent) + low * (load(high_sin + i, extent) * sign),
            extent);
    });
    std::memcpy(y + heads.rotated, x + heads.rotated,
                static_cast<std::size_t>(heads.width - heads.rotated) * sizeof(T));
  }
}

}  // namespace

void rotate_heads(const TokenHeads& heads, const void* cos, const void* sin, DType dtype, bool transposed) {
  if (dtype == DType::kBFloat16) {
    rotate(heads, static_cast<const BFloat16Bits*>(cos), static_cast<const BFloat16Bits*>(sin), transposed);
  } else {
    rotate(heads, static_cast<const float*>(cos), static_cast<const float*>(sin), transposed);
  }
}

}  // namespace pyft::cpu::PYFT_ISA
