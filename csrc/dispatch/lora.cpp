// The entries of the LoRA operations.
#include <algorithm>

#include "dispatch/run_on.h"

namespace pyft {
namespace {

// None, or float32 [P, rows, columns of `result`].
void check_parts(const char* op, const TensorRef& workspace, const TensorRef& result) {
  if (!workspace.defined) return;
  check_dtype(op, workspace, DType::kFloat32);
  check_num_dims(op, workspace, 3);
  check(workspace.shape[0] > 0, op, ": ", workspace.name, " has shape ", shape_text(workspace),
        ", expected parts");
  check_size(op, workspace, 1, result.shape[0], "the result has");
  check_size(op, workspace, 2, result.shape[1], "the result has");
  check_contiguous(op, workspace);
}

// float32 of two dimensions, contiguous.
void check_narrow(const char* op, const TensorRef& matrix) {
  check_dtype(op, matrix, DType::kFloat32);
  check_num_dims(op, matrix, 2);
  check_contiguous(op, matrix);
}

// All but `projected` and `y`.
void check_lora_linear(const LoraLinearArgs& args) {
  const char* op = "lora_linear";
  const WeightShape weight = check_lora_base(op, args.weight);
  check_float_matrix(op, args.x);
  check(args.x.shape[1] == weight.num_columns, op, ": x.shape[-1] is ", args.x.shape[1], ", weight expects ",
        weight.num_columns);
  check_lora_adapter(op, args.lora_A, args.lora_B, weight);
  check_bias(op, args.bias, args.x.dtype, weight.num_rows);
  check_dropout(op, args.dropout);
  check_lora_base_device(op, args.weight, args.x);
  common_device(op, {&args.x, &args.bias, &args.lora_A, &args.lora_B});
}

}  // namespace

void lora_linear(const LoraLinearArgs& args, const ExecutionContext& context) {
  const char* op = "lora_linear";
  check_lora_linear(args);
  check_linear(op, args.x, args.x.shape[1], args.y, args.lora_B.shape[0]);
  check_matrix(op, args.projected, DType::kFloat32, args.x.shape[0], args.lora_A.shape[0],
               "x and lora_A give");
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

LoraPlan plan_lora(std::int64_t num_tokens, std::int64_t num_columns, std::int64_t rank) {
  constexpr std::int64_t kBlocks = 264;  // two for each multiprocessor of the largest GPUs
  const auto tiles = [](std::int64_t size, std::int64_t tile) {
    return std::max<std::int64_t>(1, (size + tile - 1) / tile);
  };
  const std::int64_t token_tiles = tiles(num_tokens, kLoraTileTokens);
  const std::int64_t panels = tiles(num_columns, lora_panel_columns(rank));
  const std::int64_t steps = tiles(num_columns, kLoraTileColumns);
  return {std::min(steps, tiles(kBlocks, token_tiles)), panels,
          std::min(token_tiles, tiles(kBlocks, panels))};
}

void lora_project(const LoraProjectArgs& args, const ExecutionContext& context) {
  const char* op = "lora_project";
  check_float_matrix(op, args.x);
  check_narrow(op, args.lora_A);
  check_size(op, args.lora_A, 1, args.x.shape[1], "x expects");
  check_matrix(op, args.projected, DType::kFloat32, args.x.shape[0], args.lora_A.shape[0],
               "x and lora_A give");
  check_parts(op, args.workspace, args.projected);
  check_dropout(op, args.dropout);
  const DeviceType device = common_device(op, {&args.x, &args.lora_A, &args.projected, &args.workspace});
  run_on(op, device, args, context, nullptr, PYFT_CUDA_KERNEL(lora_project));
}

void lora_expand(const LoraExpandArgs& args, const ExecutionContext& context) {
  const char* op = "lora_expand";
  check_narrow(op, args.projected);
  check_narrow(op, args.lora_B);
  check_size(op, args.lora_B, 1, args.projected.shape[1], "projected expects");
  check_float_dtype(op, args.y);
  check_matrix(op, args.y, args.y.dtype, args.projected.shape[0], args.lora_B.shape[0],
               "projected and lora_B give");
  check_bias(op, args.bias, args.y.dtype, args.lora_B.shape[0]);
  const DeviceType device = common_device(op, {&args.projected, &args.lora_B, &args.bias, &args.y});
  run_on(op, device, args, context, nullptr, PYFT_CUDA_KERNEL(lora_expand));
}

void lora_expand_backward(const LoraExpandBackwardArgs& args, const ExecutionContext& context) {
  const char* op = "lora_expand_backward";
  check_narrow(op, args.grad_projected);
  check_narrow(op, args.lora_A);
  check_size(op, args.lora_A, 0, args.grad_projected.shape[1], "grad_projected expects");
  check_float_dtype(op, args.grad_x);
  check_matrix(op, args.grad_x, args.grad_x.dtype, args.grad_projected.shape[0], args.lora_A.shape[1],
               "grad_projected and lora_A give");
  check_dropout(op, args.dropout);
  const DeviceType device = common_device(op, {&args.grad_projected, &args.lora_A, &args.grad_x});
  run_on(op, device, args, context, nullptr, PYFT_CUDA_KERNEL(lora_expand_backward));
}

void lora_grad(const LoraGradArgs& args, const ExecutionContext& context) {
  const char* op = "lora_grad";
  check_float_matrix(op, args.grad_y);
  check_narrow(op, args.lora_B);
  check_size(op, args.lora_B, 0, args.grad_y.shape[1], "grad_y expects");
  const std::int64_t num_tokens = args.grad_y.shape[0], rank = args.lora_B.shape[1];
  check(args.grad_projected.defined || args.grad_B.defined, op,
        ": grad_projected is None and so is grad_B, one of them is needed");
  if (args.grad_projected.defined) {
    check_matrix(op, args.grad_projected, DType::kFloat32, num_tokens, rank, "grad_y and lora_B give");
    check_parts(op, args.row_workspace, args.grad_projected);
  }
  if (args.grad_B.defined) {
    check_matrix(op, args.projected, DType::kFloat32, num_tokens, rank, "grad_y and lora_B expect");
    check_matrix(op, args.grad_B, DType::kFloat32, args.lora_B.shape[0], rank, "lora_B has");
    check_parts(op, args.column_workspace, args.grad_B);
  }
  if (args.grad_projected.defined && args.grad_B.defined) {
    const std::int64_t expected = plan_lora(num_tokens, args.grad_y.shape[1], rank).row_parts;
    const std::int64_t given = args.row_workspace.defined ? args.row_workspace.shape[0] : 1;
    check(given == expected, op, ": row_workspace has ", given, " parts, the plan says ", expected);
  }
  const DeviceType device =
      common_device(op, {&args.grad_y, &args.lora_B, &args.projected, &args.grad_projected, &args.grad_B,
                         &args.row_workspace, &args.column_workspace});
  run_on(op, device, args, context, nullptr, PYFT_CUDA_KERNEL(lora_grad));
}

void lora_grad_A(const LoraGradAArgs& args, const ExecutionContext& context) {
  const char* op = "lora_grad_A";
  check_float_matrix(op, args.x);
  check_narrow(op, args.grad_projected);
  check_size(op, args.grad_projected, 0, args.x.shape[0], "x expects");
  check_matrix(op, args.grad_A, DType::kFloat32, args.grad_projected.shape[1], args.x.shape[1],
               "grad_projected and x give");
  check_parts(op, args.workspace, args.grad_A);
  check_dropout(op, args.dropout);
  const DeviceType device = common_device(op, {&args.x, &args.grad_projected, &args.grad_A, &args.workspace});
  run_on(op, device, args, context, nullptr, PYFT_CUDA_KERNEL(lora_grad_A));
}

void lora_addition(const LoraAdditionArgs& args, const ExecutionContext& context) {
  const LoraLinearArgs& layer = args.layer;
  check_lora_linear(layer);
  lora_project({layer.x, layer.lora_A, layer.projected, args.workspace, layer.scaling, layer.dropout},
               context);
  if (layer.y.defined) lora_expand({layer.projected, layer.lora_B, layer.bias, layer.y, false}, context);
}

void lora_addition_backward(const LoraAdditionBackwardArgs& args, const ExecutionContext& context) {
  if (args.grad_B.defined) {
    lora_project({args.x, args.lora_A, args.projected, args.project_workspace, args.scaling, args.dropout},
                 context);
  }
  lora_grad({args.grad_y, args.lora_B, args.projected, args.grad_projected, args.grad_B, args.row_workspace,
             args.column_workspace, args.scaling},
            context);
  if (args.grad_x.defined)
    lora_expand_backward({args.grad_projected, args.lora_A, args.grad_x, false, args.dropout}, context);
  if (args.grad_A.defined)
    lora_grad_A({args.x, args.grad_projected, args.grad_A, args.grad_A_workspace, args.dropout}, context);
}

}  // namespace pyft
