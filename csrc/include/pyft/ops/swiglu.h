// SwiGLU. Computed in float32 and rounded once.
#pragma once

#include "pyft/ops/context.h"
#include "pyft/tensor_ref.h"

namespace pyft {

// y = silu(gate) up = gate up / (1 + exp(-gate)), entry by entry.
struct SwigluArgs {
  TensorRef gate;  // float32 or bfloat16, any shape, contiguous
  TensorRef up;    // like gate
  TensorRef y;     // out: like gate
};
void swiglu(const SwigluArgs& args, const ExecutionContext& context);

// With s = 1 / (1 + exp(-gate)):   dGate = dY up s (1 + gate (1 - s)),   dUp = dY gate s.
// Each output may be any of the inputs.
struct SwigluBackwardArgs {
  TensorRef grad_y;     // like gate
  TensorRef gate;       // float32 or bfloat16, any shape, contiguous
  TensorRef up;         // like gate
  TensorRef grad_gate;  // out: like gate
  TensorRef grad_up;    // out: like gate
};
void swiglu_backward(const SwigluBackwardArgs& args, const ExecutionContext& context);

}  // namespace pyft
