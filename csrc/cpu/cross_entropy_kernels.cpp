// Rows of logits: their scale and soft cap, the numbers behind log-sum-exp, and softmax. Compiled once per
// instruction set (rule in kernels.h).
//
//     row_logits:       l[v] = c tanh(scale (l[v] + bias[v]) / c)
//     row_max_and_sum:  max = max_v l[v],   sum = sum_v exp(l[v] - max)
//     row_sum:          sum_v l[v]
//     row_softmax:      out[v] = (exp(l[v] - max) * factor - uniform) * (1 - (l[v] / c)^2)
//
// Logits are read in vectors of kLanes; a short tail goes through a padded copy of one vector. Sums of
// exp are kept per lane within kChunk entries and then added up in double, so the sum's error does not grow
// with V.
#include <cstdint>

#include "cpu/kernel_table.h"
#include "cpu/rows.h"

namespace pyft::cpu::PYFT_ISA {
namespace {

constexpr std::int64_t kChunk = 4096;

template <typename T>
constexpr T minus_infinity();
template <>
constexpr float minus_infinity<float>() {
  return -__builtin_inff();
}
template <>
constexpr BFloat16Bits minus_infinity<BFloat16Bits>() {
  return 0xff80;
}

// tanh(x), or NaN: relative error below 2e-7. Near 0 a polynomial (Cephes' tanhf), else 1 - 2 / (exp(2|x|) +
// 1), written with exp(-2|x|).
inline FloatVector tanh(FloatVector x) {
  const FloatVector square = x * x;
  FloatVector p = square * -5.70498872745e-3f + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const FloatVector near = p * square * x + x;
  const FloatVector absolute = select(x < 0.0f, -x, x);
  const FloatVector e = exp_nonpositive(-2.0f * absolute);
  const FloatVector far = 1.0f - 2.0f * e / (1.0f + e);
  return select(absolute < 0.625f, near, select(x < 0.0f, -far, far));
}

template <typename T>
double sum_of(const T* row, std::int64_t n) {
  double total = 0.0;
  for (std::int64_t begin = 0; begin < n; begin += kChunk) {
    const std::int64_t end = begin + kChunk < n ? begin + kChunk : n;
    FloatVector sums = {};
    std::int64_t v = begin;
    for (; v + kLanes <= end; v += kLanes) sums += load(row + v);
    if (v < end) sums += load_tail(row + v, end - v, T{});
    for (int lane = 0; lane < kLanes; ++lane) total += static_cast<double>(sums[lane]);
  }
  return total;
}

template <typename T>
void max_and_sum(const T* row, std::int64_t n, float* max, double* sum) {
  const std::int64_t whole = n / kLanes * kLanes;
  FloatVector largest = FloatVector{} - __builtin_inff();
  for (std::int64_t v = 0; v < whole; v += kLanes) {
    const FloatVector values = load(row + v);
    largest = select(values > largest, values, largest);
  }
  if (whole < n) {
    const FloatVector values = load_tail(row + whole, n - whole, minus_infinity<T>());
    largest = select(values > largest, values, largest);
  }
  float row_max = largest[0];
  for (int lane = 1; lane < kLanes; ++lane) row_max = largest[lane] > row_max ? largest[lane] : row_max;

  double total = 0.0;
  for (std::int64_t begin = 0; begin < n; begin += kChunk) {
    const std::int64_t end = begin + kChunk < n ? begin + kChunk : n;
    FloatVector sums = {};
    std::int64_t v = begin;
    for (; v + kLanes <= end; v += kLanes) sums += exp_nonpositive(load(row + v) - row_max);
    if (v < end) sums += exp_nonpositive(load_tail(row + v, end - v, minus_infinity<T>()) - row_max);
    for (int lane = 0; lane < kLanes; ++lane) total += static_cast<double>(sums[lane]);
  }
  *max = row_max;
  *sum = total;
}

template <typename T>
void softmax(const T* row, std::int64_t n, const SoftmaxTerms& terms, T* out) {
  const auto value = [&terms](FloatVector logits) {
    const FloatVector uncapped = exp_nonpositive(logits - terms.max) * terms.factor - terms.uniform;
    if (terms.inverse_softcap == 0.0f) return uncapped;
    const FloatVector ratio = logits * terms.inverse_softcap;
    return uncapped * (1.0f - ratio * ratio);
  };
  std::int64_t v = 0;
  for (; v + kLanes <= n; v += kLanes) store(out + v, value(load(row + v)));
  if (v < n) store_tail(out + v, value(load_tail(row + v, n - v, minus_infinity<T>())), n - v);
}

template <typename Bias>
void logits(float* row, const Bias* bias, std::int64_t n, float scale, float softcap) {
  const float inverse_softcap = softcap == 0.0f ? 0.0f : 1.0f / softcap;
  const auto value = [=](FloatVector product, FloatVector addend) {
    const FloatVector scaled = (product + addend) * scale;
    return softcap == 0.0f ? scaled : tanh(scaled * inverse_softcap) * softcap;
  };
  std::int64_t v = 0;
  for (; v + kLanes <= n; v += kLanes) {
    store(row + v, value(load(row + v), bias ? load(bias + v) : FloatVector{}));
  }
  if (v < n) {
    const FloatVector addend = bias ? load_tail(bias + v, n - v, Bias{}) : FloatVector{};
    store_tail(row + v, value(load_tail(row + v, n - v, 0.0f), addend), n - v);
  }
}

}  // namespace

void row_max_and_sum(const void* row, DType dtype, std::int64_t n, float* max, double* sum) {
  if (dtype == DType::kBFloat16) {
    max_and_sum(static_cast<const BFloat16Bits*>(row), n, max, sum);
  } else {
    max_and_sum(static_cast<const float*>(row), n, max, sum);
  }
}

double row_sum(const void* row, DType dtype, std::int64_t n) {
  return dtype == DType::kBFloat16 ? sum_of(static_cast<const BFloat16Bits*>(row), n)
                                   : sum_of(static_cast<const float*>(row), n);
}

void row_softmax(const void* row, DType dtype, std::int64_t n, const SoftmaxTerms& terms, void* out) {
  if (dtype == DType::kBFloat16) {
    softmax(static_cast<const BFloat16Bits*>(row), n, terms, static_cast<BFloat16Bits*>(out));
  } else {
    softmax(static_cast<const float*>(row), n, terms, static_cast<float*>(out));
  }
}

void row_logits(float* row, const void* bias, DType bias_dtype, std::int64_t n, float scale, float softcap) {
  if (bias_dtype == DType::kBFloat16) {
    logits(row, static_cast<const BFloat16Bits*>(bias), n, scale, softcap);
  } else {
    logits(row, static_cast<const float*>(bias), n, scale, softcap);
  }
}

}  // namespace pyft::cpu::PYFT_ISA
