// The entries of the LoRA operations.
#include "dispatch/run_on.h"

namespace pyft {

void lora_linear(const LoraLinearArgs& args, const ExecutionContext& context) {
  const char* op = "lora_linear";
  const WeightShape weight = check_lora_base(op, args.weight);
  check_linear(op, args.x, weight.num_columns, args.y, weight.num_rows);
  check_lora_adapter(op, args.lora_A, args.lora_B, weight);
  check_bias(op, args.bias, args.x.dtype, weight.num_rows);
  check_matrix(op, args.projected, DType::kFloat32, args.x.shape[0], args.lora_A.shape[0],
               "x and lora_A give");
  check_dropout(op, args.dropout);
  check_lora_base_device(op, args.weight, args.x);
  const DeviceType device =
      common_device(op, {&args.x, &args.bias, &args.lora_A, &args.lora_B, &args.projected, &args.y});
  run_on(op, device, args, context, cpu::lora_linear, nullptr);
}

void lora_linear_backward(const LoraLinearBackwardArgs& args, const ExecutionContext& context) {
  const char* op = "lora_linear_backward";
  const WeightShape weight = check_lora_base(op, args.weight);
  check_linear(op, args.x, weight.num_columns, args.grad_y, weight.num_rows);
  check_lora_adapter(op, args.lora_A, args.lora_B, weight);
  const std::int64_t num_tokens = args.x.shape[0], rank = args.lora_A.shape[0];
  check_matrix(op, args.projected, DType::kFloat32, num_tokens, rank, "x and lora_A give");
  check_matrix(op, args.grad_projected, DType::kFloat32, num_tokens, rank, "x and lora_A give");
  if (args.grad_x.defined)
    check_matrix(op, args.grad_x, args.x.dtype, num_tokens, weight.num_columns, "x has");
  if (args.grad_A.defined)
    check_matrix(op, args.grad_A, DType::kFloat32, rank, weight.num_columns, "lora_A has");
  if (args.grad_B.defined)
    check_matrix(op, args.grad_B, DType::kFloat32, weight.num_rows, rank, "lora_B has");
  check_dropout(op, args.dropout);
  check_lora_base_device(op, args.weight, args.x);
  const DeviceType device =
      common_device(op, {&args.x, &args.grad_y, &args.lora_A, &args.lora_B, &args.projected,
                         &args.grad_projected, &args.grad_x, &args.grad_A, &args.grad_B});
  run_on(op, device, args, context, cpu::lora_linear_backward, nullptr);
}

}  // namespace pyft
