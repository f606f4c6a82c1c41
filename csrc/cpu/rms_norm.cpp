// RMSNorm, SwiGLU and the rotary embedding: rows, entries and tokens are dealt out in pieces of about kGrain
// entries, below which waking a thread costs more than the work.
//
// RMSNorm's weight gradient is summed in P partial rows, each over its own ceil(T / P) tokens and by one
// thread, then over them in order, in double: the bits depend on P, not on the threads.
#include <algorithm>

#include "cpu/isa.h"
#include "cpu/operations.h"
#include "cpu/parallel.h"

namespace pyft::cpu {
namespace {

constexpr std::int64_t kGrain = 16384;

std::int64_t rows_per_piece(std::int64_t width) { return kGrain / std::max<std::int64_t>(width, 1) + 1; }

char* element(const TensorRef& tensor, std::int64_t index) {
  return tensor.as<char>() + index * dtype_bytes(tensor.dtype);
}

void sum_partials(const TensorRef& partials, const TensorRef& out, std::int64_t begin, std::int64_t end) {
  const std::int64_t num_partials = partials.shape[0], width = partials.shape[1];
  for (std::int64_t k = begin; k < end; ++k) {
    double sum = 0.0;
    for (std::int64_t p = 0; p < num_partials; ++p) sum += partials.as<const float>()[p * width + k];
    if (out.dtype == DType::kBFloat16) {
      out.as<BFloat16Bits>()[k] = float_to_bfloat16(static_cast<float>(sum));
    } else {
      out.as<float>()[k] = static_cast<float>(sum);
    }
  }
}

// The heads of one token of q or k, and of where they go.
TokenHeads heads_of(const TensorRef& in, const TensorRef& out, std::int64_t row, std::int64_t token,
                    std::int64_t rotated) {
  return {element(in, row * in.strides[0] + token * in.strides[2]),
          in.strides[1],
          element(out, row * out.strides[0] + token * out.strides[2]),
          out.strides[1],
          in.shape[1],
          in.shape[3],
          rotated};
}

}  // namespace

void rms_norm(const RmsNormArgs& args, int num_threads) {
  const std::int64_t num_rows = args.x.shape[0], width = args.x.shape[1];
  parallel_for(num_threads, num_rows, rows_per_piece(width), [&](std::int64_t begin, std::int64_t end) {
    kernels().rms_norm_rows(element(args.x, begin * width), args.weight.data, args.x.dtype, end - begin,
                            width, static_cast<float>(args.eps), static_cast<float>(args.weight_offset),
                            element(args.y, begin * width), args.inverse_rms.as<float>() + begin);
  });
}

void rms_norm_backward(const RmsNormBackwardArgs& args, int num_threads) {
  const std::int64_t num_rows = args.x.shape[0], width = args.x.shape[1];
  const auto run = [&](std::int64_t begin, std::int64_t end, float* grad_weight) {
    kernels().rms_norm_rows_backward(element(args.grad_y, begin * width), element(args.x, begin * width),
                                     args.weight.data, args.inverse_rms.as<const float>() + begin,
                                     args.x.dtype, end - begin, width, static_cast<float>(args.weight_offset),
                                     element(args.grad_x, begin * width), grad_weight);
  };
  if (!args.grad_weight.defined) {
    return parallel_for(num_threads, num_rows, rows_per_piece(width),
                        [&](std::int64_t begin, std::int64_t end) { run(begin, end, nullptr); });
  }
  const std::int64_t num_partials = args.partials.shape[0];
  const std::int64_t rows_each = (num_rows + num_partials - 1) / num_partials;
  const std::int64_t grain = kGrain / std::max<std::int64_t>(rows_each * width, 1) + 1;
  parallel_for(num_threads, num_partials, grain, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t p = first; p < last; ++p) {
      float* const partial = args.partials.as<float>() + p * width;
      std::fill_n(partial, width, 0.0f);
      const std::int64_t begin = std::min(p * rows_each, num_rows);
      run(begin, std::min(begin + rows_each, num_rows), partial);
    }
  });
  parallel_for(num_threads, width, kGrain / num_partials + 1, [&](std::int64_t begin, std::int64_t end) {
    sum_partials(args.partials, args.grad_weight, begin, end);
  });
}

void swiglu(const SwigluArgs& args, int num_threads) {
  const DType dtype = args.gate.dtype;
  parallel_for(num_threads, args.gate.num_elements(), kGrain, [&](std::int64_t begin, std::int64_t end) {
    kernels().swiglu(element(args.gate, begin), element(args.up, begin), dtype, end - begin,
                     element(args.y, begin));
  });
}

void swiglu_backward(const SwigluBackwardArgs& args, int num_threads) {
  const DType dtype = args.gate.dtype;
  parallel_for(num_threads, args.gate.num_elements(), kGrain, [&](std::int64_t begin, std::int64_t end) {
    kernels().swiglu_backward(element(args.grad_y, begin), element(args.gate, begin), element(args.up, begin),
                              dtype, end - begin, element(args.grad_gate, begin),
                              element(args.grad_up, begin));
  });
}

void rotary(const RotaryArgs& args, int num_threads) {
  const std::int64_t num_tokens = args.q.shape[2], rotated = args.cos.shape[2];
  const std::int64_t entries = (args.q.shape[1] + args.k.shape[1]) * args.q.shape[3];
  parallel_for(
      num_threads, args.q.shape[0] * num_tokens, rows_per_piece(entries),
      [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t index = begin; index < end; ++index) {
          const std::int64_t row = index / num_tokens, token = index % num_tokens;
          const void* const cos = element(args.cos, row * args.cos.strides[0] + token * args.cos.strides[1]);
          const void* const sin = element(args.sin, row * args.sin.strides[0] + token * args.sin.strides[1]);
          for (const TokenHeads& heads : {heads_of(args.q, args.rotated_q, row, token, rotated),
                                          heads_of(args.k, args.rotated_k, row, token, rotated)}) {
            kernels().rotate_heads(heads, cos, sin, args.q.dtype, args.transposed);
          }
        }
      });
}

}  // namespace pyft::cpu
