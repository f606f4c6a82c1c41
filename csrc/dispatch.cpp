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

// What every linear cross-entropy is given.
template <typename Args>
void check_linear_cross_entropy(const char* op, const Args& args, std::int64_t workspace_floats) {
  check_float_matrix(op, args.hidden);
  check_float_matrix(op, args.head_weight);
  check_dtype(op, args.head_weight, args.hidden.dtype);
  check_size(op, args.hidden, 1, args.head_weight.shape[1], "head_weight expects");
  check_targets(op, args.targets, args.hidden);
  check_dtype(op, args.workspace, DType::kFloat32);
  check_contiguous(op, args.workspace);
  check(args.workspace.num_elements() >= workspace_floats, op, ": workspace has ",
        args.workspace.num_elements(), " elements, expected ", workspace_floats);
  check_logit_terms(op, args.logits, args.head_weight);
  check_loss_terms(op, args.terms);
}

template <typename Args>
void check_kept(const char* op, const Args& args) {
  check_matrix(op, args.row_stats, DType::kFloat32, args.hidden.shape[0], 2, "hidden needs");
  check_num_dims(op, args.kept_logits, 2);
  check_matrix(op, args.kept_logits, DType::kFloat32, args.kept_logits.shape[0], args.head_weight.shape[0],
               "head_weight needs");
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
  require_cpu(op, common_device(op, {&args.absmax, &args.given_offset, &args.absmax_codes,
                                     &args.nested_absmax, &args.offset}));
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
  require_cpu(op,
              common_device(op, {&args.x, &args.bias, &args.lora_A, &args.lora_B, &args.projected, &args.y}));
  cpu::lora_linear(args, context.num_threads);
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
  require_cpu(op, common_device(op, {&args.x, &args.grad_y, &args.lora_A, &args.lora_B, &args.projected,
                                     &args.grad_projected, &args.grad_x, &args.grad_A, &args.grad_B}));
  cpu::lora_linear_backward(args, context.num_threads);
}

// ---- Cross-entropy
// ---------------------------------------------------------------------------------------------

void cross_entropy(const CrossEntropyArgs& args, const ExecutionContext& context) {
  const char* op = "cross_entropy";
  check_float_matrix(op, args.logits);
  check_targets(op, args.targets, args.logits);
  check_scalar(op, args.loss);
  check_matrix(op, args.row_stats, DType::kFloat32, args.logits.shape[0], 2, "logits need");
  check_loss_terms(op, args.terms);
  require_cpu(op, common_device(op, {&args.logits, &args.targets, &args.loss, &args.row_stats}));
  check_target_range(op, args.targets, args.ignore_index, args.logits.shape[1]);
  cpu::cross_entropy(args, context.num_threads);
}

void cross_entropy_backward(const CrossEntropyBackwardArgs& args, const ExecutionContext& context) {
  const char* op = "cross_entropy_backward";
  check_float_matrix(op, args.logits);
  check_targets(op, args.targets, args.logits);
  check_scalar(op, args.grad_loss);
  const std::int64_t num_rows = args.logits.shape[0], vocabulary = args.logits.shape[1];
  check_matrix(op, args.row_stats, DType::kFloat32, num_rows, 2, "logits need");
  check_matrix(op, args.grad_logits, args.logits.dtype, num_rows, vocabulary, "logits have");
  check_loss_terms(op, args.terms);
  require_cpu(op, common_device(op, {&args.grad_loss, &args.logits, &args.targets, &args.row_stats,
                                     &args.grad_logits}));
  check_target_range(op, args.targets, args.ignore_index, vocabulary);
  cpu::cross_entropy_backward(args, context.num_threads);
}

void linear_cross_entropy(const LinearCrossEntropyArgs& args, const ExecutionContext& context) {
  const char* op = "linear_cross_entropy";
  check_float_matrix(op, args.hidden);
  check_float_matrix(op, args.head_weight);
  const std::int64_t num_tokens = args.hidden.shape[0];
  const std::int64_t width = args.hidden.shape[1], vocabulary = args.head_weight.shape[0];
  check_linear_cross_entropy(op, args, plan_linear_cross_entropy(args).workspace_floats);
  check_scalar(op, args.loss);
  if (args.grad_hidden.defined)
    check_matrix(op, args.grad_hidden, DType::kFloat32, num_tokens, width, "hidden has");
  if (args.grad_head.defined)
    check_matrix(op, args.grad_head, DType::kFloat32, vocabulary, width, "head_weight has");
  check_bias(op, args.grad_bias, DType::kFloat32, vocabulary);
  require_cpu(op, common_device(
                      op, {&args.hidden, &args.head_weight, &args.logits.bias, &args.targets, &args.workspace,
                           &args.loss, &args.grad_hidden, &args.grad_head, &args.grad_bias}));
  check_target_range(op, args.targets, args.ignore_index, vocabulary);
  cpu::linear_cross_entropy(args, context.num_threads);
}

void linear_cross_entropy_forward(const LinearCrossEntropyForwardArgs& args,
                                  const ExecutionContext& context) {
  const char* op = "linear_cross_entropy_forward";
  check_float_matrix(op, args.hidden);
  check_linear_cross_entropy(op, args, args.hidden.num_elements());
  check_scalar(op, args.loss);
  check_kept(op, args);
  require_cpu(op, common_device(op, {&args.hidden, &args.head_weight, &args.logits.bias, &args.targets,
                                     &args.workspace, &args.loss, &args.row_stats, &args.kept_logits}));
  check_target_range(op, args.targets, args.ignore_index, args.head_weight.shape[0]);
  cpu::linear_cross_entropy_forward(args, context.num_threads);
}

void linear_cross_entropy_backward(const LinearCrossEntropyBackwardArgs& args,
                                   const ExecutionContext& context) {
  const char* op = "linear_cross_entropy_backward";
  check_float_matrix(op, args.hidden);
  const std::int64_t num_tokens = args.hidden.shape[0], width = args.hidden.shape[1];
  check_linear_cross_entropy(op, args, linear_cross_entropy_backward_floats(num_tokens, width));
  check_scalar(op, args.grad_loss);
  check_kept(op, args);
  const std::int64_t vocabulary = args.head_weight.shape[0];
  if (args.grad_hidden.defined)
    check_matrix(op, args.grad_hidden, args.hidden.dtype, num_tokens, width, "hidden has");
  if (args.grad_head.defined)
    check_matrix(op, args.grad_head, args.hidden.dtype, vocabulary, width, "head_weight has");
  check_bias(op, args.grad_bias, args.hidden.dtype, vocabulary);
  require_cpu(op, common_device(op, {&args.grad_loss, &args.hidden, &args.head_weight, &args.logits.bias,
                                     &args.targets, &args.row_stats, &args.kept_logits, &args.workspace,
                                     &args.grad_hidden, &args.grad_head, &args.grad_bias}));
  check_target_range(op, args.targets, args.ignore_index, vocabulary);
  cpu::linear_cross_entropy_backward(args, context.num_threads);
}

}  // namespace pyft
