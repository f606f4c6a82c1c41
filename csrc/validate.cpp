#include "validate.h"

#include <cmath>

#include "pyft/nf4_format.h"

namespace pyft {
namespace {

std::int64_t ceil_div(std::int64_t value, std::int64_t unit) { return (value + unit - 1) / unit; }

void check_storage(const char* op, const TensorRef& tensor, DType dtype, std::int64_t expected) {
  check_dtype(op, tensor, dtype);
  check(tensor.num_elements() == expected, op, ": ", tensor.name, " has ", tensor.num_elements(),
        " elements, the weight's shape needs ", expected);
  check_contiguous(op, tensor);
}

}  // namespace

void check_nf4(const char* op, const Nf4Tensors& weight) {
  check(weight.num_rows >= 0 && weight.num_columns >= 0, op, ": the weight's shape is [", weight.num_rows,
        ", ", weight.num_columns, "], sizes cannot be negative");
  const std::int64_t num_weights = weight.num_rows * weight.num_columns;
  const std::int64_t num_blocks = ceil_div(num_weights, kNf4BlockSize);
  check_storage(op, weight.codes, DType::kUInt8, ceil_div(num_weights, 2));
  if (weight.absmax.defined) {
    check(!weight.absmax_codes.defined, op,
          ": absmax and absmax_codes are both given, one of them describes the weight");
    return check_storage(op, weight.absmax, DType::kFloat32, num_blocks);
  }
  check(weight.absmax_codes.defined, op, ": absmax is None and so is absmax_codes, one of them is needed");
  check_storage(op, weight.absmax_codes, DType::kUInt8, num_blocks);
  check_storage(op, weight.nested_absmax, DType::kFloat32, ceil_div(num_blocks, kNestedBlockSize));
  check_storage(op, weight.offset, DType::kFloat32, 1);
}

void check_linear(const char* op, const TensorRef& operand, std::int64_t features, const TensorRef& out,
                  std::int64_t out_features) {
  check_float_dtype(op, operand);
  check_num_dims(op, operand, 2);
  check(operand.shape[1] == features, op, ": ", operand.name, ".shape[-1] is ", operand.shape[1],
        ", weight expects ", features);
  check_contiguous(op, operand);
  check_dtype(op, out, operand.dtype);
  check_num_dims(op, out, 2);
  check_size(op, out, 0, operand.shape[0], "the input has");
  check_size(op, out, 1, out_features, "weight gives");
  check_contiguous(op, out);
}

void check_matrix(const char* op, const TensorRef& matrix, DType dtype, std::int64_t num_rows,
                  std::int64_t num_columns, const char* whose) {
  check_dtype(op, matrix, dtype);
  check_num_dims(op, matrix, 2);
  check_size(op, matrix, 0, num_rows, whose);
  check_size(op, matrix, 1, num_columns, whose);
  check_contiguous(op, matrix);
}

void check_float_matrix(const char* op, const TensorRef& matrix) {
  check_float_dtype(op, matrix);
  check_num_dims(op, matrix, 2);
  check_contiguous(op, matrix);
}

void check_like(const char* op, const TensorRef& tensor, const TensorRef& like) {
  check_dtype(op, tensor, like.dtype);
  bool is_same = tensor.num_dims == like.num_dims;
  for (int i = 0; is_same && i < like.num_dims; ++i) is_same = tensor.shape[i] == like.shape[i];
  check(is_same, op, ": ", tensor.name, " has shape ", shape_text(tensor), ", ", like.name, " has ",
        shape_text(like));
}

void check_scalar(const char* op, const TensorRef& tensor) {
  check_dtype(op, tensor, DType::kFloat32);
  check(tensor.num_elements() == 1, op, ": ", tensor.name, " has ", tensor.num_elements(),
        " elements, expected 1");
}

void check_bias(const char* op, const TensorRef& bias, DType dtype, std::int64_t size) {
  if (!bias.defined) return;
  check_dtype(op, bias, dtype);
  check_num_dims(op, bias, 1);
  check_size(op, bias, 0, size, "weight expects");
  check_contiguous(op, bias);
}

WeightShape check_lora_base(const char* op, const LoraBase& base) {
  if (!base.dense.defined) {
    check_nf4(op, base.nf4);
    return {base.nf4.num_rows, base.nf4.num_columns};
  }
  check(!base.nf4.codes.defined, op, ": the weight is given twice, dense and in NF4");
  check_float_matrix(op, base.dense);
  return {base.dense.shape[0], base.dense.shape[1]};
}

void check_lora_adapter(const char* op, const TensorRef& lora_A, const TensorRef& lora_B,
                        const WeightShape& weight) {
  for (const TensorRef* matrix : {&lora_A, &lora_B}) {
    check_dtype(op, *matrix, DType::kFloat32);
    check_num_dims(op, *matrix, 2);
    check_contiguous(op, *matrix);
  }
  check_size(op, lora_A, 1, weight.num_columns, "weight expects");
  check_size(op, lora_B, 0, weight.num_rows, "weight expects");
  check_size(op, lora_B, 1, lora_A.shape[0], "lora_A expects");
}

void check_logit_terms(const char* op, const LogitTerms& logits, const TensorRef& head_weight) {
  check_bias(op, logits.bias, head_weight.dtype, head_weight.shape[0]);
  check(std::isfinite(logits.scale), op, ": logit_scale is ", logits.scale, ", expected a finite number");
  check(logits.softcap >= 0.0 && std::isfinite(logits.softcap), op, ": logit_softcap is ", logits.softcap,
        ", expected a number above 0, or none");
}

void check_loss_terms(const char* op, const LossTerms& terms) {
  check(terms.label_smoothing >= 0.0 && terms.label_smoothing <= 1.0, op, ": label_smoothing is ",
        terms.label_smoothing, ", expected 0 <= label_smoothing <= 1");
  check(terms.z_loss >= 0.0 && std::isfinite(terms.z_loss), op, ": z_loss is ", terms.z_loss,
        ", expected a number not below 0");
}

void check_dropout(const char* op, const Dropout& dropout) {
  check(dropout.probability >= 0.0 && dropout.probability < 1.0, op, ": dropout is ", dropout.probability,
        ", expected 0 <= dropout < 1");
}

void check_lora_base_device(const char* op, const LoraBase& base, const TensorRef& x) {
  common_device(op, {&x, &base.dense, &base.nf4.codes, &base.nf4.absmax, &base.nf4.absmax_codes,
                     &base.nf4.nested_absmax, &base.nf4.offset});
}

void check_targets(const char* op, const TensorRef& targets, const TensorRef& beside) {
  check_dtype(op, targets, DType::kInt64);
  check_num_dims(op, targets, 1);
  check(targets.shape[0] == beside.shape[0], op, ": targets.shape[0] is ", targets.shape[0], ", ",
        beside.name, " expects ", beside.shape[0]);
  check_contiguous(op, targets);
}

void check_target_range(const char* op, const TensorRef& targets, std::int64_t ignore_index,
                        std::int64_t vocabulary) {
  const std::int64_t* values = targets.as<const std::int64_t>();
  for (std::int64_t t = 0; t < targets.shape[0]; ++t) {
    if (values[t] == ignore_index || (values[t] >= 0 && values[t] < vocabulary)) continue;
    fail(ErrorKind::kIndex, op, ": targets[", t, "] is ", values[t], ", expected ", ignore_index,
         " (ignored) or an id in [0, ", vocabulary, ")");
  }
}

DeviceType common_device(const char* op, std::initializer_list<const TensorRef*> tensors) {
  const TensorRef* first = nullptr;
  for (const TensorRef* tensor : tensors) {
    if (!tensor->defined) continue;
    if (!first) first = tensor;
    check(tensor->device == first->device && tensor->device_index == first->device_index, op, ": ",
          tensor->name, " is on ", device_name(tensor->device), ":", tensor->device_index, ", ", first->name,
          " on ", device_name(first->device), ":", first->device_index);
  }
  return first ? first->device : DeviceType::kCpu;
}

}  // namespace pyft
