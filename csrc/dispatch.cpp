// Every operation enters here: its arguments are checked once, then the device its tensors are on does the
// work.
#include "cpu/operations.h"
#include "pyft/nf4_format.h"
#include "pyft/ops.h"
#include "validate.h"

namespace pyft {
namespace {

void require_cpu(const char* op, DeviceType device) {
  check(device == DeviceType::kCpu, op, ": the tensors are on cuda, this operation has only a cpu kernel");
}

DeviceType nf4_device(const char* op, const Nf4Tensors& weight, const TensorRef& a, const TensorRef& b,
                      const TensorRef& c) {
  return common_device(op, {&a, &b, &c, &weight.codes, &weight.absmax, &weight.absmax_codes,
                            &weight.nested_absmax, &weight.offset});
}

}  // namespace

// ---- NF4
// -------------------------------------------------------------------------------------------------------

void nf4_quantize(const Nf4QuantizeArgs& args, const ExecutionContext& context) {
  const char* op = "nf4_quantize";
  check_float_dtype(op, args.weight);
  check_contiguous(op, args.weight);
  const std::int64_t num_weights = args.weight.num_elements();
  check_dtype(op, args.codes, DType::kUInt8);
  check_num_dims(op, args.codes, 1);
  check_size(op, args.codes, 0, (num_weights + 1) / 2, "weight needs");
  check_contiguous(op, args.codes);
  check_dtype(op, args.absmax, DType::kFloat32);
  check_num_dims(op, args.absmax, 1);
  check_size(op, args.absmax, 0, (num_weights + kNf4BlockSize - 1) / kNf4BlockSize, "weight needs");
  check_contiguous(op, args.absmax);
  require_cpu(op, common_device(op, {&args.weight, &args.codes, &args.absmax}));
  cpu::nf4_quantize(args, context.num_threads);
}

void nf4_quantize_absmax(const Nf4QuantizeAbsmaxArgs& args, const ExecutionContext& context) {
  const char* op = "nf4_quantize_absmax";
  check_dtype(op, args.absmax, DType::kFloat32);
  check_num_dims(op, args.absmax, 1);
  check_contiguous(op, args.absmax);
  const std::int64_t num_blocks = args.absmax.shape[0];
  check_dtype(op, args.offset, DType::kFloat32);
  check(args.offset.num_elements() == 1, op, ": offset has ", args.offset.num_elements(),
        " elements, expected 1");
  check_dtype(op, args.absmax_codes, DType::kUInt8);
  check_num_dims(op, args.absmax_codes, 1);
  check_size(op, args.absmax_codes, 0, num_blocks, "absmax needs");
  check_contiguous(op, args.absmax_codes);
  check_dtype(op, args.nested_absmax, DType::kFloat32);
  check_num_dims(op, args.nested_absmax, 1);
  check_size(op, args.nested_absmax, 0, (num_blocks + kNestedBlockSize - 1) / kNestedBlockSize,
             "absmax needs");
  check_contiguous(op, args.nested_absmax);
  require_cpu(op, common_device(op, {&args.absmax, &args.offset, &args.absmax_codes, &args.nested_absmax}));
  cpu::nf4_quantize_absmax(args, context.num_threads);
}

void nf4_dequantize(const Nf4DequantizeArgs& args, const ExecutionContext& context) {
  const char* op = "nf4_dequantize";
  check_nf4(op, args.weight);
  check_float_dtype(op, args.out);
  check_num_dims(op, args.out, 2);
  check_size(op, args.out, 0, args.weight.num_rows, "weight has");
  check_size(op, args.out, 1, args.weight.num_columns, "weight has");
  check_contiguous(op, args.out);
  require_cpu(op, nf4_device(op, args.weight, args.out, args.out, args.out));
  cpu::nf4_dequantize(args, context.num_threads);
}

void nf4_linear(const Nf4LinearArgs& args, const ExecutionContext& context) {
  const char* op = "nf4_linear";
  check_nf4(op, args.weight);
  check_linear(op, args.x, args.weight.num_columns, args.y, args.weight.num_rows);
  if (args.bias.defined) {
    check_dtype(op, args.bias, args.x.dtype);
    check_num_dims(op, args.bias, 1);
    check_size(op, args.bias, 0, args.weight.num_rows, "weight expects");
    check_contiguous(op, args.bias);
  }
  require_cpu(op, nf4_device(op, args.weight, args.x, args.y, args.bias));
  cpu::nf4_linear(args, context.num_threads);
}

void nf4_linear_backward(const Nf4LinearBackwardArgs& args, const ExecutionContext& context) {
  const char* op = "nf4_linear_backward";
  check_nf4(op, args.weight);
  check_linear(op, args.grad_y, args.weight.num_rows, args.grad_x, args.weight.num_columns);
  require_cpu(op, nf4_device(op, args.weight, args.grad_y, args.grad_x, args.grad_x));
  cpu::nf4_linear_backward(args, context.num_threads);
}

// ---- LoRA
// ------------------------------------------------------------------------------------------------------

// ---- Cross-entropy
// ---------------------------------------------------------------------------------------------

}  // namespace pyft
