// SwiGLU: entries are dealt out in pieces.
#include "cpu/isa.h"
#include "cpu/operations.h"
#include "cpu/parallel.h"

namespace pyft::cpu {

void swiglu(const SwigluArgs& args, int num_threads) {
  const DType dtype = args.gate.dtype;
  parallel_for(num_threads, args.gate.num_elements(), kGrain, [&](std::int64_t begin, std::int64_t end) {
    kernels().swiglu(args.gate.at(begin), args.up.at(begin), dtype, end - begin, args.y.at(begin));
  });
}

void swiglu_backward(const SwigluBackwardArgs& args, int num_threads) {
  const DType dtype = args.gate.dtype;
  parallel_for(num_threads, args.gate.num_elements(), kGrain, [&](std::int64_t begin, std::int64_t end) {
    kernels().swiglu_backward(args.grad_y.at(begin), args.gate.at(begin), args.up.at(begin), dtype,
                              end - begin, args.grad_gate.at(begin), args.grad_up.at(begin));
  });
}

}  // namespace pyft::cpu
