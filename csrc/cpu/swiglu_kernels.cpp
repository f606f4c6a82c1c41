// SwiGLU entry by entry, and its gradient. Compiled once per instruction set (rule in kernels.h).
//
//     s = 1 / (1 + exp(-a))       y  = a s u
//     dA = dY u s (1 + a (1 - s))       dU = dY a s
//
// With e = exp(-a), s is 1 / (1 + e) and 1 - s is e s: nothing cancels, and for a held within [-87, 87]
// nothing overflows; below, s is 0. A vector is read whole before it is written, so outputs may be inputs.
#include "cpu/kernel_table.h"
#include "cpu/rows.h"

namespace pyft::cpu::PYFT_ISA {
namespace {

constexpr float kLimit = 87.0f;

struct Sigmoid {
  FloatVector value, complement;
};

inline Sigmoid sigmoid(FloatVector a) {
  const FloatVector e = exp_in_range(-hold_within(a, kLimit)), s = 1.0f / (1.0f + e);
  return {select(a < -kLimit, FloatVector{}, s), e * s};
}

template <typename T>
void forward(const T* gate, const T* up, std::int64_t n, T* y) {
  for_each_vector(n, [=](std::int64_t i, auto extent) {
    const FloatVector a = load(gate + i, extent);
    store(y + i, a * sigmoid(a).value * load(up + i, extent), extent);
  });
}

template <typename T>
void backward(const T* grad_y, const T* gate, const T* up, std::int64_t n, T* grad_gate, T* grad_up) {
  for_each_vector(n, [=](std::int64_t i, auto extent) {
    const FloatVector a = load(gate + i, extent), u = load(up + i, extent), g = load(grad_y + i, extent);
    const Sigmoid s = sigmoid(a);
    const FloatVector shared = g * s.value;
    store(grad_gate + i, shared * u * (1.0f + a * s.complement), extent);
    store(grad_up + i, shared * a, extent);
  });
}

}  // namespace

void swiglu(const void* gate, const void* up, DType dtype, std::int64_t n, void* y) {
  const auto run = [=](auto zero) {
    using T = decltype(zero);
    forward(static_cast<const T*>(gate), static_cast<const T*>(up), n, static_cast<T*>(y));
  };
  dtype == DType::kBFloat16 ? run(BFloat16Bits{}) : run(float{});
}

void swiglu_backward(const void* grad_y, const void* gate, const void* up, DType dtype, std::int64_t n,
                     void* grad_gate, void* grad_up) {
  const auto run = [=](auto zero) {
    using T = decltype(zero);
    backward(static_cast<const T*>(grad_y), static_cast<const T*>(gate), static_cast<const T*>(up), n,
             static_cast<T*>(grad_gate), static_cast<T*>(grad_up));
  };
  dtype == DType::kBFloat16 ? run(BFloat16Bits{}) : run(float{});
}

}  // namespace pyft::cpu::PYFT_ISA
