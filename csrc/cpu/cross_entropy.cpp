// cross_entropy and its backward: one row at a time, each by one thread; the rows' losses are added in order,
// in double.
//
//     loss_t      = log(sum_v exp(l[v] - max)) - (l[target] - max)             + what LossTerms adds
//     dLogits[v]  = (exp(l[v] - max) / sum - [v == target]) * dLoss            (loss_terms.h)
//
// Rows without a target are not read; their gradient is zeros.
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/isa.h"
#include "cpu/loss_terms.h"
#include "cpu/operations.h"
#include "cpu/parallel.h"

namespace pyft::cpu {
namespace {

float element(const TensorRef& matrix, std::int64_t index) {
  return matrix.dtype == DType::kBFloat16 ? bfloat16_to_float(matrix.as<const BFloat16Bits>()[index])
                                          : matrix.as<const float>()[index];
}

template <typename Body>
void for_each_row(int num_threads, std::int64_t num_rows, std::int64_t vocabulary, const Body& body) {
  parallel_for(num_threads, num_rows, rows_per_piece(vocabulary), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) body(t);
  });
}

char* row_pointer(const TensorRef& matrix, std::int64_t row) { return matrix.at(row * matrix.shape[1]); }

}  // namespace

void cross_entropy(const CrossEntropyArgs& args, int num_threads) {
  const std::int64_t num_rows = args.logits.shape[0], vocabulary = args.logits.shape[1];
  const std::int64_t* targets = args.targets.as<const std::int64_t>();
  float* stats = args.row_stats.as<float>();
  std::vector<double> row_loss(static_cast<std::size_t>(num_rows), 0.0);
  for_each_row(num_threads, num_rows, vocabulary, [&](std::int64_t t) {
    RowSums sums{0.0f, 0.0, 0.0};
    if (targets[t] != args.ignore_index) {
      const char* row = row_pointer(args.logits, t);
      kernels().row_max_and_sum(row, args.logits.dtype, vocabulary, &sums.max, &sums.sum);
      if (args.terms.label_smoothing != 0.0)
        sums.total = kernels().row_sum(row, args.logits.dtype, vocabulary);
      const float target_logit = element(args.logits, t * vocabulary + targets[t]);
      row_loss[static_cast<std::size_t>(t)] = loss_of_row(args.terms, sums, target_logit, vocabulary);
    }
    stats[2 * t] = sums.max;
    stats[2 * t + 1] = static_cast<float>(sums.sum);
  });
  double loss = 0.0;
  for (double row : row_loss) loss += row;
  *args.loss.as<float>() = static_cast<float>(loss);
}

void cross_entropy_backward(const CrossEntropyBackwardArgs& args, int num_threads) {
  const std::int64_t num_rows = args.logits.shape[0], vocabulary = args.logits.shape[1];
  const std::int64_t* targets = args.targets.as<const std::int64_t>();
  const float* stats = args.row_stats.as<const float>();
  const float grad_loss = *args.grad_loss.as<const float>();
  for_each_row(num_threads, num_rows, vocabulary, [&](std::int64_t t) {
    char* out = row_pointer(args.grad_logits, t);
    if (targets[t] == args.ignore_index) {
      std::memset(out, 0, static_cast<std::size_t>(vocabulary * dtype_bytes(args.logits.dtype)));
      return;
    }
    const RowSums sums{stats[2 * t], stats[2 * t + 1], 0.0};
    const double weight = softmax_weight(args.terms, sums.log_sum_exp()) / sums.sum;
    const double uniform = uniform_weight(args.terms, vocabulary);
    const SoftmaxTerms terms{sums.max, static_cast<float>(weight * grad_loss),
                             static_cast<float>(uniform * grad_loss), 0.0f};
    kernels().row_softmax(row_pointer(args.logits, t), args.logits.dtype, vocabulary, terms, out);
    // apart from the others: rounded once, after the subtraction
    const double target_logit = element(args.logits, t * vocabulary + targets[t]);
    const float gradient = static_cast<float>(
        (std::exp(target_logit - sums.max) * weight - uniform - target_weight(args.terms)) * grad_loss);
    if (args.logits.dtype == DType::kBFloat16) {
      reinterpret_cast<BFloat16Bits*>(out)[targets[t]] = float_to_bfloat16(gradient);
    } else {
      reinterpret_cast<float*>(out)[targets[t]] = gradient;
    }
  });
}

}  // namespace pyft::cpu
