// The entries of RMSNorm, SwiGLU and the rotary embedding.
#include "dispatch/run_on.h"

namespace pyft {
namespace {

void check_row_values(const char* op, const TensorRef& values, DType dtype, std::int64_t size) {
  check_dtype(op, values, dtype);
  check_num_dims(op, values, 1);
  check_size(op, values, 0, size, "x has");
  check_contiguous(op, values);
}

// `tensor` has the dtype and the shape of `like`.
void check_like(const char* op, const TensorRef& tensor, const TensorRef& like) {
  check_dtype(op, tensor, like.dtype);
  bool is_same = tensor.num_dims == like.num_dims;
  for (int i = 0; is_same && i < like.num_dims; ++i) is_same = tensor.shape[i] == like.shape[i];
  check(is_same, op, ": ", tensor.name, " has shape ", shape_text(tensor), ", ", like.name, " has ",
        shape_text(like));
}

void check_entries(const char* op, const TensorRef& tensor) {
  const int last = tensor.num_dims - 1;
  check(tensor.shape[last] <= 1 || tensor.strides[last] == 1 || tensor.num_elements() == 0, op, ": ",
        tensor.name, " has stride ", tensor.strides[last], " in its last dimension, expected 1");
}

void check_heads(const char* op, const TensorRef& heads, const TensorRef& q) {
  check_dtype(op, heads, q.dtype);
  check_num_dims(op, heads, 4);
  check_size(op, heads, 0, q.shape[0], "q has");
  check_size(op, heads, 2, q.shape[2], "q has");
  check_size(op, heads, 3, q.shape[3], "q has");
  check_entries(op, heads);
}

void check_table(const char* op, const TensorRef& table, const TensorRef& q, std::int64_t rotated) {
  check_dtype(op, table, q.dtype);
  check_num_dims(op, table, 3);
  check_size(op, table, 0, q.shape[0], "q has");
  check_size(op, table, 1, q.shape[2], "q has");
  check_size(op, table, 2, rotated, "cos has");
  check_entries(op, table);
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

void rotary(const RotaryArgs& args, const ExecutionContext& context) {
  const char* op = "rotary";
  check_float_dtype(op, args.q);
  check_num_dims(op, args.q, 4);
  check_entries(op, args.q);
  check_heads(op, args.k, args.q);
  check_num_dims(op, args.cos, 3);
  const std::int64_t rotated = args.cos.shape[2], width = args.q.shape[3];
  check(rotated % 2 == 0 && rotated <= width, op, ": cos.shape[2] is ", rotated,
        ", expected an even number of at most ", width, ", q.shape[3]");
  check_table(op, args.cos, args.q, rotated);
  check_table(op, args.sin, args.q, rotated);
  for (const auto& [out, in] : {std::pair{&args.rotated_q, &args.q}, std::pair{&args.rotated_k, &args.k}}) {
    check_like(op, *out, *in);
    check_entries(op, *out);
  }
  const DeviceType device =
      common_device(op, {&args.q, &args.k, &args.cos, &args.sin, &args.rotated_q, &args.rotated_k});
  run_on(op, device, args, context, cpu::rotary, PYFT_CUDA_KERNEL(rotary));
}

}  // namespace pyft
