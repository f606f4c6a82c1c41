// Checks of arguments that several operations share; each operation's own checks stand in dispatch.cpp.
#pragma once

#include "pyft/ops.h"

namespace pyft {

// Storage of the sizes that [num_rows, num_columns] asks for, contiguous, with absmax or its nested parts.
void check_nf4(const char* op, const Nf4Tensors& weight);

// `operand` [T, features] and `out` [T, out_features]: same float dtype, contiguous, matching.
void check_linear(const char* op, const TensorRef& operand, std::int64_t features, const TensorRef& out,
                  std::int64_t out_features);

// All defined tensors of one call lie on one device; returns it.
DeviceType common_device(const char* op, std::initializer_list<const TensorRef*> tensors);

}  // namespace pyft
