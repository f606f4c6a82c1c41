// RMSNorm of rows of K entries, and its gradient. Compiled once per instruction set (rule in kernels.h).
//
//     s = 1 / sqrt(mean_k x[k]^2 + eps)           y[k]  = s x[k] (offset + w[k])
//     g[k] = dY[k] (offset + w[k])                dX[k] = s (g[k] - s x[k] mean_j g[j] s x[j])
//                                                 dW[k] += dY[k] s x[k]
//
// A row is read twice, the second time from the cache. Sums are kept in kSums vectors, as a chain of
// additions would wait for each.
#include "cpu/kernel_table.h"
#include "cpu/rows.h"

namespace pyft::cpu::PYFT_ISA {
namespace {

constexpr int kSums = 4;

// sum_k value(k, extent), where value gives a vector of terms that is 0 past the row's end.
template <typename Value>
inline float sum_over(std::int64_t n, const Value& value) {
  FloatVector sums[kSums] = {};
  std::int64_t k = 0;
  for (; k + kSums * kLanes <= n; k += kSums * kLanes) {
    for (int i = 0; i < kSums; ++i) sums[i] += value(k + i * kLanes, Whole{});
  }
  for (; k + kLanes <= n; k += kLanes) sums[0] += value(k, Whole{});
  if (k < n) sums[1] += value(k, Part{n - k});
  return sum_of_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <typename T>
void forward(const T* x, const T* weight, std::int64_t num_rows, std::int64_t width, float eps, float offset,
             T* y, float* inverse_rms) {
  for (std::int64_t t = 0; t < num_rows; ++t, x += width, y += width) {
    const float square = sum_over(width, [=](std::int64_t k, auto extent) {
      const FloatVector values = load(x + k, extent);
      return values * values;
    });
    const float scale = 1.0f / __builtin_sqrtf(square / static_cast<float>(width) + eps);
    inverse_rms[t] = scale;
    for_each_vector(width, [=](std::int64_t k, auto extent) {
      store(y + k, load(x + k, extent) * scale * (load(weight + k, extent) + offset), extent);
    });
  }
}

template <typename T>
void backward(const T* grad_y, const T* x, const T* weight, const float* inverse_rms, std::int64_t num_rows,
              std::int64_t width, float offset, T* grad_x, float* grad_weight) {
  for (std::int64_t t = 0; t < num_rows; ++t, grad_y += width, x += width, grad_x += width) {
    const float scale = inverse_rms[t];
    const float along = sum_over(width, [=](std::int64_t k, auto extent) {
      return load(grad_y + k, extent) * (load(weight + k, extent) + offset) * (load(x + k, extent) * scale);
    });
    const float mean = along / static_cast<float>(width);
    for_each_vector(width, [=](std::int64_t k, auto extent) {
      const FloatVector gradient = load(grad_y + k, extent), normed = load(x + k, extent) * scale;
      if (grad_weight) {
        store(grad_weight + k, load(grad_weight + k, extent) + gradient * normed, extent);
      }
      const FloatVector scaled = gradient * (load(weight + k, extent) + offset);
      store(grad_x + k, (scaled - normed * mean) * scale, extent);
    });
  }
}

}  // namespace

void rms_norm_rows(const void* x, const void* weight, DType dtype, std::int64_t num_rows, std::int64_t width,
                   float eps, float weight_offset, void* y, float* inverse_rms) {
  const auto run = [=](auto zero) {
    using T = decltype(zero);
    forward(static_cast<const T*>(x), static_cast<const T*>(weight), num_rows, width, eps, weight_offset,
            static_cast<T*>(y), inverse_rms);
  };
  dtype == DType::kBFloat16 ? run(BFloat16Bits{}) : run(float{});
}

void rms_norm_rows_backward(const void* grad_y, const void* x, const void* weight, const float* inverse_rms,
                            DType dtype, std::int64_t num_rows, std::int64_t width, float weight_offset,
                            void* grad_x, float* grad_weight) {
  const auto run = [=](auto zero) {
    using T = decltype(zero);
    backward(static_cast<const T*>(grad_y), static_cast<const T*>(x), static_cast<const T*>(weight),
             inverse_rms, num_rows, width, weight_offset, static_cast<T*>(grad_x), grad_weight);
  };
  dtype == DType::kBFloat16 ? run(BFloat16Bits{}) : run(float{});
}

}  // namespace pyft::cpu::PYFT_ISA
