// The entries of SwiGLU.
#include "dispatch/run_on.h"

namespace pyft {

void swiglu(const SwigluArgs& args, const ExecutionContext& context) {
  const char* op = "swiglu";
  check_float_dtype(op, args.gate);
  for (const TensorRef* tensor : {&args.gate, &args.up, &args.y}) {
    check_like(op, *tensor, args.gate);
    check_contiguous(op, *tensor);
  }
  const DeviceType device = common_device(op, {&args.gate, &args.up, &args.y});
  run_on(op, device, args, context, cpu::swiglu, PYFT_CUDA_KERNEL(swiglu));
}

void swiglu_backward(const SwigluBackwardArgs& args, const ExecutionContext& context) {
  const char* op = "swiglu_backward";
  check_float_dtype(op, args.gate);
  for (const TensorRef* tensor : {&args.gate, &args.up, &args.grad_y, &args.grad_gate, &args.grad_up}) {
    check_like(op, *tensor, args.gate);
    check_contiguous(op, *tensor);
  }
  const DeviceType device =
      common_device(op, {&args.grad_y, &args.gate, &args.up, &args.grad_gate, &args.grad_up});
  run_on(op, device, args, context, cpu::swiglu_backward, PYFT_CUDA_KERNEL(swiglu_backward));
}

}  // namespace pyft
