// The entries of the cross-entropy operations.
#include "dispatch/run_on.h"

namespace pyft {
namespace {

// What every linear cross-entropy is given.
template <typename Args>
void check_inputs(const char* op, const Args& args) {
  check_float_matrix(op, args.hidden);
  check_float_matrix(op, args.head_weight);
  check_dtype(op, args.head_weight, args.hidden.dtype);
  check_size(op, args.hidden, 1, args.head_weight.shape[1], "head_weight expects");
  check_targets(op, args.targets, args.hidden);
  check_logit_terms(op, args.logits, args.head_weight);
  check_loss_terms(op, args.terms);
}

template <typename Args>
void check_linear_cross_entropy(const char* op, const Args& args, std::int64_t workspace_floats) {
  check_inputs(op, args);
  check_dtype(op, args.workspace, DType::kFloat32);
  check_contiguous(op, args.workspace);
  check(args.workspace.num_elements() >= workspace_floats, op, ": workspace has ",
        args.workspace.num_elements(), " elements, expected ", workspace_floats);
}

template <typename Args>
void check_kept(const char* op, const Args& args) {
  check_matrix(op, args.row_stats, DType::kFloat32, args.hidden.shape[0], 2, "hidden needs");
  check_num_dims(op, args.kept_logits, 2);
  check_matrix(op, args.kept_logits, DType::kFloat32, args.kept_logits.shape[0], args.head_weight.shape[0],
               "head_weight needs");
}

}  // namespace

void cross_entropy(const CrossEntropyArgs& args, const ExecutionContext& context) {
  const char* op = "cross_entropy";
  check_float_matrix(op, args.logits);
  check_targets(op, args.targets, args.logits);
  check_scalar(op, args.loss);
  check_matrix(op, args.row_stats, DType::kFloat32, args.logits.shape[0], 2, "logits need");
  check_bias(op, args.row_losses, DType::kFloat32, args.logits.shape[0]);
  check_loss_terms(op, args.terms);
  const DeviceType device =
      common_device(op, {&args.logits, &args.targets, &args.loss, &args.row_stats, &args.row_losses});
  if (device == DeviceType::kCpu && !kIsEmulated)
    check_target_range(op, args.targets, args.ignore_index, args.logits.shape[1]);
  run_on(op, device, args, context, cpu::cross_entropy, PYFT_CUDA_KERNEL(cross_entropy));
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
  const DeviceType device =
      common_device(op, {&args.grad_loss, &args.logits, &args.targets, &args.row_stats, &args.grad_logits});
  if (device == DeviceType::kCpu && !kIsEmulated)
    check_target_range(op, args.targets, args.ignore_index, vocabulary);
  run_on(op, device, args, context, cpu::cross_entropy_backward, PYFT_CUDA_KERNEL(cross_entropy_backward));
}

void check_linear_cross_entropy(const LinearCrossEntropyInputs& inputs) {
  const char* op = "linear_cross_entropy";
  check_inputs(op, inputs);
  common_device(op, {&inputs.hidden, &inputs.head_weight, &inputs.logits.bias, &inputs.targets});
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
  const DeviceType device =
      common_device(op, {&args.hidden, &args.head_weight, &args.logits.bias, &args.targets, &args.workspace,
                         &args.loss, &args.grad_hidden, &args.grad_head, &args.grad_bias});
  if (device == DeviceType::kCpu) check_target_range(op, args.targets, args.ignore_index, vocabulary);
  run_on(op, device, args, context, cpu::linear_cross_entropy, nullptr);
}

void linear_cross_entropy_forward(const LinearCrossEntropyForwardArgs& args,
                                  const ExecutionContext& context) {
  const char* op = "linear_cross_entropy_forward";
  check_float_matrix(op, args.hidden);
  check_linear_cross_entropy(op, args, args.hidden.num_elements());
  check_scalar(op, args.loss);
  check_kept(op, args);
  const DeviceType device =
      common_device(op, {&args.hidden, &args.head_weight, &args.logits.bias, &args.targets, &args.workspace,
                         &args.loss, &args.row_stats, &args.kept_logits});
  if (device == DeviceType::kCpu)
    check_target_range(op, args.targets, args.ignore_index, args.head_weight.shape[0]);
  run_on(op, device, args, context, cpu::linear_cross_entropy_forward, nullptr);
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
  const DeviceType device =
      common_device(op, {&args.grad_loss, &args.hidden, &args.head_weight, &args.logits.bias, &args.targets,
                         &args.row_stats, &args.kept_logits, &args.workspace, &args.grad_hidden,
                         &args.grad_head, &args.grad_bias});
  if (device == DeviceType::kCpu) check_target_range(op, args.targets, args.ignore_index, vocabulary);
  run_on(op, device, args, context, cpu::linear_cross_entropy_backward, nullptr);
}

}  // namespace pyft
