// The entries of linear_cross_entropy's steps on CUDA.
#include "dispatch/run_on.h"

namespace pyft {
namespace {

constexpr std::int64_t kMaxPanelIds = 4096;  // what a block holds in registers

void check_row_ids(const char* op, const TensorRef& ids, std::int64_t num_rows) {
  check_dtype(op, ids, DType::kInt64);
  check_num_dims(op, ids, 1);
  check_size(op, ids, 0, num_rows, "the rows are");
  check_contiguous(op, ids);
}

void check_row_values(const char* op, const TensorRef& values, std::int64_t num_rows) {
  check_dtype(op, values, DType::kFloat32);
  check_num_dims(op, values, 1);
  check_size(op, values, 0, num_rows, "the rows are");
  check_contiguous(op, values);
}

// Products [C, P] of float32 with contiguous rows, and `in_place` [C, P], float32 or bfloat16, whose rows
// begin where theirs do.
void check_in_place(const char* op, const TensorRef& products, const TensorRef& in_place) {
  check_dtype(op, products, DType::kFloat32);
  check_num_dims(op, products, 2);
  check(products.shape[1] <= 1 || products.strides[1] == 1, op, ": products' rows are not contiguous");
  check(products.shape[0] <= 1 || products.strides[0] >= products.shape[1], op, ": products' rows overlap");
  if (!in_place.defined) return;
  check_float_dtype(op, in_place);
  check_num_dims(op, in_place, 2);
  check_size(op, in_place, 0, products.shape[0], "products have");
  check_size(op, in_place, 1, products.shape[1], "products have");
  const std::int64_t per_float = in_place.dtype == DType::kFloat32 ? 1 : 2;
  const bool lies_there = in_place.data == products.data &&
                          (in_place.shape[1] <= 1 || in_place.strides[1] == 1) &&
                          (in_place.shape[0] <= 1 || in_place.strides[0] == per_float * products.strides[0]);
  check(lies_there || products.num_elements() == 0, op, ": ", in_place.name,
        " does not lie where the products do");
}

void check_logits(const char* op, const LogitTerms& logits, DType dtype, std::int64_t num_ids) {
  const TensorRef head_weight{nullptr, dtype, DeviceType::kCpu, 0, 2, {num_ids, 0}};
  check_logit_terms(op, logits, head_weight);
}

}  // namespace

void counted_rows(const CountedRowsArgs& args, const ExecutionContext& context) {
  const char* op = "counted_rows";
  check_row_ids(op, args.targets, args.targets.shape[0]);
  check_row_ids(op, args.rows, args.rows.shape[0]);
  check_row_ids(op, args.row_targets, args.rows.shape[0]);
  check_scalar(op, args.verdict);
  const DeviceType device = common_device(op, {&args.targets, &args.rows, &args.row_targets, &args.verdict});
  run_on(op, device, args, context, nullptr, PYFT_CUDA_KERNEL(counted_rows));
}

void gather_rows(const GatherRowsArgs& args, const ExecutionContext& context) {
  const char* op = "gather_rows";
  check_float_matrix(op, args.from);
  check_matrix(op, args.to, args.from.dtype, args.to.shape[0], args.from.shape[1], "from has");
  check_row_ids(op, args.rows, args.to.shape[0]);
  const DeviceType device = common_device(op, {&args.from, &args.rows, &args.to});
  run_on(op, device, args, context, nullptr, PYFT_CUDA_KERNEL(gather_rows));
}

void scatter_rows(const ScatterRowsArgs& args, const ExecutionContext& context) {
  const char* op = "scatter_rows";
  check_float_matrix(op, args.from);
  check_dtype(op, args.from, DType::kFloat32);
  check_matrix(op, args.to, DType::kFloat32, args.to.shape[0], args.from.shape[1], "from has");
  check_row_ids(op, args.rows, args.from.shape[0]);
  const DeviceType device = common_device(op, {&args.from, &args.rows, &args.to});
  run_on(op, device, args, context, nullptr, PYFT_CUDA_KERNEL(scatter_rows));
}

void linear_cross_entropy_panel(const LinearCrossEntropyPanelArgs& args, const ExecutionContext& context) {
  const char* op = "linear_cross_entropy_panel";
  check_in_place(op, args.products, args.weights);
  const std::int64_t num_rows = args.products.shape[0], num_ids = args.products.shape[1];
  check(num_ids <= kMaxPanelIds, op, ": products.shape[1] is ", num_ids, ", expected at most ", kMaxPanelIds);
  check_row_ids(op, args.row_targets, num_rows);
  check_matrix(op, args.row_stats, DType::kFloat32, num_rows, 4, "products need");
  if (args.sums.defined) {
    check_float_matrix(op, args.sums);
    check_matrix(op, args.sums, DType::kFloat32, num_rows, args.sums.shape[1], "products have");
  }
  const TensorRef& narrow = args.weights.defined ? args.weights : args.logits.bias;
  if (narrow.defined) check_float_dtype(op, narrow);
  check_logits(op, args.logits, narrow.dtype, num_ids);
  const DeviceType device = common_device(
      op, {&args.products, &args.weights, &args.row_targets, &args.row_stats, &args.sums, &args.logits.bias});
  run_on(op, device, args, context, nullptr, PYFT_CUDA_KERNEL(linear_cross_entropy_panel));
}

void linear_cross_entropy_finish(const LinearCrossEntropyFinishArgs& args, const ExecutionContext& context) {
  const char* op = "linear_cross_entropy_finish";
  check_float_matrix(op, args.head_weight);
  check_row_ids(op, args.rows, args.rows.shape[0]);
  const std::int64_t num_rows = args.rows.shape[0], width = args.head_weight.shape[1];
  check_row_ids(op, args.row_targets, num_rows);
  check_matrix(op, args.row_stats, DType::kFloat32, num_rows, 4, "rows need");
  check_row_values(op, args.row_losses, num_rows);
  check(args.sums.defined == args.grad_hidden.defined, op,
        ": sums and grad_hidden are given together or not");
  check_loss_terms(op, args.terms);
  if (args.sums.defined) {
    check_matrix(op, args.sums, DType::kFloat32, num_rows, width, "rows and head_weight have");
    check_float_matrix(op, args.grad_hidden);
    check_matrix(op, args.grad_hidden, DType::kFloat32, args.grad_hidden.shape[0], width, "head_weight has");
    check(args.terms.label_smoothing == 0.0, op, ": there is no gradient with label_smoothing");
  }
  check_logits(op, args.logits, args.head_weight.dtype, args.head_weight.shape[0]);
  const DeviceType device =
      common_device(op, {&args.row_stats, &args.row_targets, &args.rows, &args.head_weight, &args.sums,
                         &args.row_losses, &args.grad_hidden});
  run_on(op, device, args, context, nullptr, PYFT_CUDA_KERNEL(linear_cross_entropy_finish));
}

void linear_cross_entropy_chunk(const LinearCrossEntropyChunkArgs& args, const ExecutionContext& context) {
  const char* op = "linear_cross_entropy_chunk";
  check_defined(op, args.gradient);
  check_in_place(op, args.products, args.gradient);
  const std::int64_t num_rows = args.products.shape[0];
  check_row_ids(op, args.row_targets, num_rows);
  check_row_values(op, args.row_losses, num_rows);
  check_logits(op, args.logits, args.gradient.dtype, args.products.shape[1]);
  check_loss_terms(op, args.terms);
  const DeviceType device = common_device(
      op, {&args.products, &args.gradient, &args.row_targets, &args.row_losses, &args.logits.bias});
  run_on(op, device, args, context, nullptr, PYFT_CUDA_KERNEL(linear_cross_entropy_chunk));
}

}  // namespace pyft
