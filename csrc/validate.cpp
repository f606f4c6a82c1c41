#include "validate.h"

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
