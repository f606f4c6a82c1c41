// The entries of the NF4 operations.
#include "dispatch/run_on.h"
#include "pyft/nf4_format.h"

namespace pyft {
namespace {

template <typename... Tensors>
DeviceType nf4_device(const char* op, const Nf4Tensors& weight, const Tensors&... others) {
  return common_device(op, {&others..., &weight.codes, &weight.absmax, &weight.absmax_codes,
                            &weight.nested_absmax, &weight.offset});
}

// What only the CUDA kernels take. `out` is [T, outer]; the adapter is [outer, R], or [R, outer].
void check_cuda_terms(const char* op, DeviceType device, const Nf4Addend& addend,
                      const Nf4Partition& partition, const TensorRef& out, bool is_backward) {
  check(
      (device == DeviceType::kCuda || kIsEmulated) || (!addend.projected.defined && !addend.adapter.defined),
      op, ": projected and adapter are for tensors on cuda");
  if (partition.workspace.defined) {
    check_dtype(op, partition.workspace, DType::kFloat32);
    check_contiguous(op, partition.workspace);
  }
  if (!addend.projected.defined) return;
  check_num_dims(op, addend.projected, 2);
  const std::int64_t rank = addend.projected.shape[1];
  check(rank > 0 && rank <= 64 && rank % 4 == 0, op, ": projected has shape ", shape_text(addend.projected),
        ", expected a rank of 4 to 64 in fours");
  check_matrix(op, addend.projected, DType::kFloat32, out.shape[0], rank, "the result has");
  check_matrix(op, addend.adapter, DType::kFloat32, is_backward ? rank : out.shape[1],
               is_backward ? out.shape[1] : rank, "projected and weight have");
}

// The part lies in the weight, and begins and ends where its kernels can: at the end of a block of 64.
void check_rectangle(const char* op, const Nf4DequantizeArgs& args) {
  const std::int64_t num_rows = args.out.shape[0], num_columns = args.out.shape[1];
  const std::int64_t row = args.first_row, column = args.first_column;
  check(row >= 0 && column >= 0 && row + num_rows <= args.weight.num_rows &&
            column + num_columns <= args.weight.num_columns,
        op, ": out of shape ", shape_text(args.out), " from row ", row, " and column ", column,
        " on lies outside the weight [", args.weight.num_rows, ", ", args.weight.num_columns, "]");
  if (num_columns == args.weight.num_columns) {
    check(row * num_columns % kNf4BlockSize == 0, op, ": first_row is ", row, ", with ", num_columns,
          " columns that is inside a block of ", kNf4BlockSize);
    return;
  }
  for (const std::int64_t width : {column, num_columns, args.weight.num_columns})
    check(width % kNf4BlockSize == 0, op, ": out has columns ", column, " to ", column + num_columns, " of ",
          args.weight.num_columns, ", a part of the columns needs multiples of ", kNf4BlockSize);
}

}  // namespace

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
  const DeviceType device = common_device(op, {&args.weight, &args.codes, &args.absmax});
  run_on(op, device, args, context, cpu::nf4_quantize, PYFT_CUDA_KERNEL(nf4_quantize));
}

void nf4_quantize_absmax(const Nf4QuantizeAbsmaxArgs& args, const ExecutionContext& context) {
  const char* op = "nf4_quantize_absmax";
  check_dtype(op, args.absmax, DType::kFloat32);
  check_num_dims(op, args.absmax, 1);
  check_contiguous(op, args.absmax);
  const std::int64_t num_blocks = args.absmax.shape[0];
  for (const TensorRef* offset : {&args.given_offset, &args.offset}) {
    if (offset == &args.given_offset && !offset->defined) continue;
    check_dtype(op, *offset, DType::kFloat32);
    check(offset->num_elements() == 1, op, ": offset has ", offset->num_elements(), " elements, expected 1");
  }
  check_dtype(op, args.absmax_codes, DType::kUInt8);
  check_num_dims(op, args.absmax_codes, 1);
  check_size(op, args.absmax_codes, 0, num_blocks, "absmax needs");
  check_contiguous(op, args.absmax_codes);
  check_dtype(op, args.nested_absmax, DType::kFloat32);
  check_num_dims(op, args.nested_absmax, 1);
  check_size(op, args.nested_absmax, 0, (num_blocks + kNestedBlockSize - 1) / kNestedBlockSize,
             "absmax needs");
  check_contiguous(op, args.nested_absmax);
  const DeviceType device = common_device(
      op, {&args.absmax, &args.given_offset, &args.absmax_codes, &args.nested_absmax, &args.offset});
  run_on(op, device, args, context, cpu::nf4_quantize_absmax, PYFT_CUDA_KERNEL(nf4_quantize_absmax));
}

void nf4_dequantize(const Nf4DequantizeArgs& args, const ExecutionContext& context) {
  const char* op = "nf4_dequantize";
  check_nf4(op, args.weight);
  check_float_dtype(op, args.out);
  check_num_dims(op, args.out, 2);
  check_contiguous(op, args.out);
  check_rectangle(op, args);
  const DeviceType device = nf4_device(op, args.weight, args.out);
  run_on(op, device, args, context, cpu::nf4_dequantize, PYFT_CUDA_KERNEL(nf4_dequantize));
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
  const DeviceType device = nf4_device(op, args.weight, args.x, args.y, args.bias, args.addend.projected,
                                       args.addend.adapter, args.partition.workspace);
  check_cuda_terms(op, device, args.addend, args.partition, args.y, false);
  run_on(op, device, args, context, cpu::nf4_linear, PYFT_CUDA_KERNEL(nf4_linear));
}

void nf4_linear_backward(const Nf4LinearBackwardArgs& args, const ExecutionContext& context) {
  const char* op = "nf4_linear_backward";
  check_nf4(op, args.weight);
  check_linear(op, args.grad_y, args.weight.num_rows, args.grad_x, args.weight.num_columns);
  const DeviceType device = nf4_device(op, args.weight, args.grad_y, args.grad_x, args.addend.projected,
                                       args.addend.adapter, args.partition.workspace);
  check_cuda_terms(op, device, args.addend, args.partition, args.grad_x, true);
  run_on(op, device, args, context, cpu::nf4_linear_backward, PYFT_CUDA_KERNEL(nf4_linear_backward));
}

}  // namespace pyft
