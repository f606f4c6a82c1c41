// Every operation enters here: its arguments are checked once, then the device its tensors are on does the
// work.
#include "cpu/operations.h"
#include "pyft/nf4_format.h"
#include "pyft/ops.h"
#include "validate.h"

#if defined(PYFT_HAS_CUDA) || defined(PYFT_EMULATION)
#include "cuda/operations.h"
#define PYFT_CUDA_KERNEL(op) cuda::op
#else
#define PYFT_CUDA_KERNEL(op) nullptr
#endif

namespace pyft {
namespace {

#if defined(PYFT_EMULATION)
constexpr bool kIsEmulated = true;  // tests: CUDA kernels work on tensors of the CPU, and nothing else does
#else
constexpr bool kIsEmulated = false;
#endif

template <typename Args>
struct CudaKernel {
  using Type = void (*)(const Args&, std::uintptr_t stream);
};

// Runs an operation on the device of its tensors. `on_cuda` is null where there is no such kernel.
template <typename Args>
void run_on(const char* op, DeviceType device, const Args& args, const ExecutionContext& context,
            void (*on_cpu)(const Args&, int num_threads), typename CudaKernel<Args>::Type on_cuda = nullptr) {
  if (device == DeviceType::kCpu && !kIsEmulated) return on_cpu(args, context.num_threads);
  check(on_cuda != nullptr, op, ": the tensors are on cuda, this operation has only a cpu kernel here");
  on_cuda(args, context.stream);
}

template <typename... Tensors>
DeviceType nf4_device(const char* op, const Nf4Tensors& weight, const Tensors&... others) {
  return common_device(op, {&others..., &weight.codes, &weight.absmax, &weight.absmax_codes,
                            &weight.nested_absmax, &weight.offset});
}

// None, or float32 [S, rows and columns of `out`].
void check_splits(const char* op, const TensorRef& workspace, const TensorRef& out) {
  if (!workspace.defined) return;
  check_dtype(op, workspace, DType::kFloat32);
  check_num_dims(op, workspace, 3);
  check(workspace.shape[0] > 0, op, ": workspace has shape ", shape_text(workspace), ", expected parts");
  check_size(op, workspace, 1, out.shape[0], "the result has");
  check_size(op, workspace, 2, out.shape[1], "the result has");
  check_contiguous(op, workspace);
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
  check_size(op, args.out, 0, args.weight.num_rows, "weight has");
  check_size(op, args.out, 1, args.weight.num_columns, "weight has");
  check_contiguous(op, args.out);
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
  check_splits(op, args.workspace, args.y);
  const DeviceType device = nf4_device(op, args.weight, args.x, args.y, args.bias, args.workspace);
  run_on(op, device, args, context, cpu::nf4_linear, PYFT_CUDA_KERNEL(nf4_linear));
}

void nf4_linear_backward(const Nf4LinearBackwardArgs& args, const ExecutionContext& context) {
  const char* op = "nf4_linear_backward";
  check_nf4(op, args.weight);
  check_linear(op, args.grad_y, args.weight.num_rows, args.grad_x, args.weight.num_columns);
  check_splits(op, args.workspace, args.grad_x);
  const DeviceType device = nf4_device(op, args.weight, args.grad_y, args.grad_x, args.workspace);
  run_on(op, device, args, context, cpu::nf4_linear_backward, PYFT_CUDA_KERNEL(nf4_linear_backward));
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
  const DeviceType device =
      common_device(op, {&args.x, &args.bias, &args.lora_A, &args.lora_B, &args.projected, &args.y});
  run_on(op, device, args, context, cpu::lora_linear);
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
  run_on(op, device, args, context, cpu::lora_linear_backward);
}

// ---- Cross-entropy
// ---------------------------------------------------------------------------------------------

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
  if (device == DeviceType::kCpu)
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
  if (device == DeviceType::kCpu) check_target_range(op, args.targets, args.ignore_index, vocabulary);
  run_on(op, device, args, context, cpu::cross_entropy_backward, PYFT_CUDA_KERNEL(cross_entropy_backward));
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
  run_on(op, device, args, context, cpu::linear_cross_entropy);
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
  run_on(op, device, args, context, cpu::linear_cross_entropy_forward);
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
  run_on(op, device, args, context, cpu::linear_cross_entropy_backward);
}

}  // namespace pyft
