// The entries of RMSNorm.
#include "dispatch/run_on.h"

namespace pyft {
namespace {

void check_row_values(const char* op, const TensorRef& values, DType dtype, std::int64_t size) {
  check_dtype(op, values, dtype);
  check_num_dims(op, values, 1);
  check_size(op, values, 0, size, "x has");
  check_contiguous(op, values);
}

}  // namespace

void rms_norm(const RmsNormArgs& args, const ExecutionContext& context) {
  const char* op = "rms_norm";
  check_float_matrix(op, args.x);
  const std::int64_t num_rows = args.x.shape[0], width = args.x.shape[1];
  check(width > 0, op, ": x has shape ", shape_text(args.x), ", a row needs an element");
  check_row_values(op, args.weight, args.x.dtype, width);
  check_matrix(op, args.y, args.x.dtype, num_rows, width, "x has");
  check_row_values(op, args.inverse_rms, DType::kFloat32, num_rows);
  const DeviceType device = common_device(op, {&args.x, &args.weight, &args.y, &args.inverse_rms});
  run_on(op, device, args, context, cpu::rms_norm, PYFT_CUDA_KERNEL(rms_norm));
}

void rms_norm_backward(const RmsNormBackwardArgs& args, const ExecutionContext& context) {
  const char* op = "rms_norm_backward";
  check_float_matrix(op, args.x);
  const std::int64_t num_rows = args.x.shape[0], width = args.x.shape[1];
  check(width > 0, op, ": x has shape ", shape_text(args.x), ", a row needs an element");
  check_row_values(op, args.weight, args.x.dtype, width);
  check_matrix(op, args.grad_y, args.x.dtype, num_rows, width, "x has");
  check_matrix(op, args.grad_x, args.x.dtype, num_rows, width, "x has");
  check_row_values(op, args.inverse_rms, DType::kFloat32, num_rows);
  check(args.grad_weight.defined == args.partials.defined, op,
        ": of grad_weight and partials one is None, expected both or neither");
  if (args.grad_weight.defined) {
    check_row_values(op, args.grad_weight, args.x.dtype, width);
    check_num_dims(op, args.partials, 2);
    check_matrix(op, args.partials, DType::kFloat32, args.partials.shape[0], width, "x needs");
    check(args.partials.shape[0] > 0, op, ": partials has shape ", shape_text(args.partials),
          ", expected at least one row");
  }
  const DeviceType device = common_device(op, {&args.grad_y, &args.x, &args.weight, &args.inverse_rms,
                                               &args.grad_x, &args.grad_weight, &args.partials});
  run_on(op, device, args, context, cpu::rms_norm_backward, PYFT_CUDA_KERNEL(rms_norm_backward));
}

}  // namespace pyft
