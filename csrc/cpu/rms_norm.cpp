// RMSNorm: rows are dealt out in pieces.
//
// The weight's gradient is summed in P partial rows, each over its own ceil(T / P) tokens and by one thread,
// then over them in order, in double: the bits depend on P, not on the threads.
#include <algorithm>

#include "cpu/isa.h"
#include "cpu/operations.h"
#include "cpu/parallel.h"

namespace pyft::cpu {
namespace {

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

}  // namespace

void rms_norm(const RmsNormArgs& args, int num_threads) {
  const std::int64_t num_rows = args.x.shape[0], width = args.x.shape[1];
  parallel_for(num_threads, num_rows, rows_per_piece(width), [&](std::int64_t begin, std::int64_t end) {
    kernels().rms_norm_rows(args.x.at(begin * width), args.weight.data, args.x.dtype, end - begin, width,
                            static_cast<float>(args.eps), static_cast<float>(args.weight_offset),
                            args.y.at(begin * width), args.inverse_rms.as<float>() + begin);
  });
}

void rms_norm_backward(const RmsNormBackwardArgs& args, int num_threads) {
  const std::int64_t num_rows = args.x.shape[0], width = args.x.shape[1];
  const auto run = [&](std::int64_t begin, std::int64_t end, float* grad_weight) {
    kernels().rms_norm_rows_backward(args.grad_y.at(begin * width), args.x.at(begin * width),
                                     args.weight.data, args.inverse_rms.as<const float>() + begin,
                                     args.x.dtype, end - begin, width, static_cast<float>(args.weight_offset),
                                     args.grad_x.at(begin * width), grad_weight);
  };
  if (!args.grad_weight.defined) {
    return parallel_for(num_threads, num_rows, rows_per_piece(width),
                        [&](std::int64_t begin, std::int64_t end) { run(begin, end, nullptr); });
  }
  const std::int64_t num_partials = args.partials.shape[0];
  const std::int64_t rows_each = (num_rows + num_partials - 1) / num_partials;
  parallel_for(num_threads, num_partials, rows_per_piece(rows_each * width),
               [&](std::int64_t first, std::int64_t last) {
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

}  // namespace pyft::cpu
