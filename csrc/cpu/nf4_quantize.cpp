// NF4 quantisation on the CPU: blocks of 64 over the threads, and the second quantisation of absmax.
//
// The second quantisation follows bitsandbytes' CPU code: values v in [-1, 1] are looked up in a table of
// 65536 steps, step = trunc(fma((v + 1) / 2, 65535, 1 / 2)); the table holds the nearest map entry of each
// step's v. Near zero the map is finer than the steps, so this is not always the nearest entry of v itself;
// equality matters more. Inputs are 1/64 of the weights, so one scalar version serves every instruction set.
#include <cmath>
#include <cstdint>
#include <vector>

#include "cpu/huge_pages.h"
#include "cpu/isa.h"
#include "cpu/operations.h"
#include "cpu/parallel.h"
#include "pyft/nf4_format.h"

namespace pyft::cpu {
namespace {

constexpr std::int64_t kBlocksPerPiece = 1024;
constexpr int kNumSteps = 65536;
constexpr float kLastStep = 65535.0f;

std::vector<std::uint8_t> make_step_codes() {
  std::vector<std::uint8_t> codes(kNumSteps);
  int code = 0;
  for (int step = 0; step < kNumSteps; ++step) {
    const float doubled = static_cast<float>(step) + static_cast<float>(step);
    const float value = doubled / kLastStep - 1.0f;
    while (code < 255 && value > (kDynamicMap.data[code] + kDynamicMap.data[code + 1]) * 0.5f) ++code;
    codes[step] = static_cast<std::uint8_t>(code);
  }
  return codes;
}

int step_of(float value) {
  if (std::isnan(value)) return 0;
  const float clamped = value < -1.0f ? -1.0f : value > 1.0f ? 1.0f : value;
  const float half = (clamped + 1.0f) * 0.5f;
  return static_cast<int>(std::fma(half, kLastStep, 0.5f)) & (kNumSteps - 1);
}

// One block of at most 256 values of absmax.
void quantize_nested_block(const float* absmax, std::int64_t count, float offset,
                           const std::uint8_t* step_codes, std::uint8_t* codes, float* nested_absmax) {
  float centred[kNestedBlockSize];
  float largest = 0.0f;
  for (std::int64_t i = 0; i < count; ++i) {
    centred[i] = absmax[i] - offset;
    const float size = std::fabs(centred[i]);
    largest = size > largest ? size : largest;
  }
  *nested_absmax = largest;
  if (largest == 0.0f) {
    for (std::int64_t i = 0; i < count; ++i) codes[i] = 0;
    return;
  }
  const float inverse = 1.0f / largest;
  for (std::int64_t i = 0; i < count; ++i) codes[i] = step_codes[step_of(centred[i] * inverse)];
}

// In one order whatever the number of threads; B is 1/64 of the weights.
float mean(const float* values, std::int64_t count) {
  double sum = 0.0;
  for (std::int64_t i = 0; i < count; ++i) sum += values[i];
  return count ? static_cast<float>(sum / static_cast<double>(count)) : 0.0f;
}

}  // namespace

void nf4_quantize(const Nf4QuantizeArgs& args, int num_threads) {
  const KernelTable& table = kernels();
  const std::int64_t num_weights = args.weight.num_elements();
  const std::int64_t num_blocks = (num_weights + kNf4BlockSize - 1) / kNf4BlockSize;
  prefer_huge_pages(args.codes.data, args.codes.num_elements());
  parallel_for(num_threads, num_blocks, kBlocksPerPiece, [&](std::int64_t begin, std::int64_t end) {
    table.nf4_quantize(args.weight.data, args.weight.dtype, num_weights, begin, end,
                       args.codes.as<std::uint8_t>(), args.absmax.as<float>());
  });
}

void nf4_quantize_absmax(const Nf4QuantizeAbsmaxArgs& args, int num_threads) {
  static const std::vector<std::uint8_t> step_codes = make_step_codes();
  const float* absmax = args.absmax.as<const float>();
  const std::int64_t num_values = args.absmax.num_elements();
  const float offset =
      args.given_offset.defined ? *args.given_offset.as<const float>() : mean(absmax, num_values);
  *args.offset.as<float>() = offset;
  const std::int64_t num_blocks = (num_values + kNestedBlockSize - 1) / kNestedBlockSize;
  parallel_for(num_threads, num_blocks, 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t block = begin; block < end; ++block) {
      const std::int64_t start = block * kNestedBlockSize;
      const std::int64_t count =
          num_values - start < kNestedBlockSize ? num_values - start : kNestedBlockSize;
      quantize_nested_block(absmax + start, count, offset, step_codes.data(),
                            args.absmax_codes.as<std::uint8_t>() + start,
                            args.nested_absmax.as<float>() + block);
    }
  });
}

}  // namespace pyft::cpu
