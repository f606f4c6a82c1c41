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
#include <cstring>

#include "cpu/kernel_table.h"
#include "cpu/vector.h"

namespace pyft::cpu::PYFT_ISA {
namespace {

constexpr std::int64_t kChunk = 4096;

typedef std::uint16_t HalfVector __attribute__((vector_size(PYFT_VECTOR_BYTES / 2)));

inline FloatVector select(IntVector condition, FloatVector yes, FloatVector no) {
  return reinterpret_cast<FloatVector>((condition & reinterpret_cast<IntVector>(yes)) |
                                       (~condition & reinterpret_cast<IntVector>(no)));
}

inline FloatVector load(const BFloat16Bits* from) {
  HalfVector bits;
  std::memcpy(&bits, from, sizeof bits);
  return reinterpret_cast<FloatVector>(__builtin_convertvector(bits, IntVector) << 16);
}

inline FloatVector load(const float* from) { return PYFT_ISA::load(from); }

// Rounds like float_to_bfloat16.
inline void store(BFloat16Bits* to, FloatVector values) {
  const IntVector wide = reinterpret_cast<IntVector>(values);
  const IntVector nan = values != values;
  const IntVector rounded = wide + 0x7fff + ((wide >> 16) & 1);
  const IntVector bits = ((~nan & rounded) | (nan & (wide | 0x400000))) >> 16;
  const HalfVector narrow = __builtin_convertvector(bits, HalfVector);
  std::memcpy(to, &narrow, sizeof narrow);
}

inline void store(float* to, FloatVector values) { PYFT_ISA::store(to, values); }

// The last `count` < kLanes entries, padded.
template <typename T>
inline FloatVector load_tail(const T* source, std::int64_t count, T padding) {
  T padded[kLanes];
  for (T& value : padded) value = padding;
  std::memcpy(padded, source, static_cast<std::size_t>(count) * sizeof(T));
  return load(padded);
}

template <typename T>
inline void store_tail(T* target, FloatVector values, std::int64_t count) {
  T padded[kLanes];
  store(padded, values);
  std::memcpy(target, padded, static_cast<std::size_t>(count) * sizeof(T));
}

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

// exp(x) for x <= 0, or NaN: relative error below 1.2e-7, exactly 0 below -87, NaN for NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2; exp(r) by a polynomial (Cephes' expf), 2^n by the exponent's bits.
inline FloatVector exp_nonpositive(FloatVector x) {
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const FloatVector shifted = x * 1.44269504088896341f + kRounder;
  const FloatVector n = shifted - kRounder;
  const FloatVector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  FloatVector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const FloatVector exp_r = (p * r) * r + r + 1.0f;
  const IntVector exponent = reinterpret_cast<IntVector>(shifted) << 23;  // n sits in the low bits
  const FloatVector power = reinterpret_cast<FloatVector>(exponent + 0x3f800000);
  return select(x < -87.0f, FloatVector{}, exp_r * power);
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
