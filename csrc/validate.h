// Checks of arguments that several operations share; each operation's own checks stand in dispatch/.
#pragma once

#include "pyft/ops.h"

namespace pyft {

// Storage of the sizes that [num_rows, num_columns] asks for, contiguous, with absmax or its nested parts.
void check_nf4(const char* op, const Nf4Tensors& weight);

// `operand` [T, features] and `out` [T, out_features]: same float dtype, contiguous, matching.
void check_linear(const char* op, const TensorRef& operand, std::int64_t features, const TensorRef& out,
                  std::int64_t out_features);

// `matrix` [num_rows, num_columns], contiguous; `whose` says what sets the sizes.
void check_matrix(const char* op, const TensorRef& matrix, DType dtype, std::int64_t num_rows,
                  std::int64_t num_columns, const char* whose);

// Float32 or bfloat16, two dimensions of any size, contiguous.
void check_float_matrix(const char* op, const TensorRef& matrix);

// The dtype and the shape of another tensor.
void check_like(const char* op, const TensorRef& tensor, const TensorRef& like);

// A float32 tensor of one element.
void check_scalar(const char* op, const TensorRef& tensor);

// None, or [size] of the given dtype, contiguous.
void check_bias(const char* op, const TensorRef& bias, DType dtype, std::int64_t size);

struct WeightShape {
  std::int64_t num_rows;
  std::int64_t num_columns;
};
// Exactly one of dense and NF4, well-formed; returns its shape.
WeightShape check_lora_base(const char* op, const LoraBase& base);
// A float32 [R, K] and B [N, R] for a weight [N, K].
void check_lora_adapter(const char* op, const TensorRef& lora_A, const TensorRef& lora_B,
                        const WeightShape& weight);
void check_logit_terms(const char* op, const LogitTerms& logits, const TensorRef& head_weight);
void check_loss_terms(const char* op, const LossTerms& terms);
void check_dropout(const char* op, const Dropout& dropout);
// The parts of the base lie on the device of x.
void check_lora_base_device(const char* op, const LoraBase& base, const TensorRef& x);

// int64 [rows of `beside`], contiguous.
void check_targets(const char* op, const TensorRef& targets, const TensorRef& beside);
// Each target is ignore_index or in [0, vocabulary); reads them, so they must be on the CPU. Throws an
// IndexError.
void check_target_range(const char* op, const TensorRef& targets, std::int64_t ignore_index,
                        std::int64_t vocabulary);

// All defined tensors of one call lie on one device; returns it.
DeviceType common_device(const char* op, std::initializer_list<const TensorRef*> tensors);

}  // namespace pyft
