#include "cpu/scratch.h"

#include <cstdlib>
#include <new>

namespace pyft::cpu {
namespace {

struct Buffers {
  ~Buffers() {
    for (float* buffer : data) std::free(buffer);
  }

  float* data[static_cast<int>(Scratch::kCount)] = {};
  std::int64_t num_floats[static_cast<int>(Scratch::kCount)] = {};
};

thread_local Buffers buffers;

}  // namespace

float* scratch_floats(Scratch slot, std::int64_t num_floats) {
  const int index = static_cast<int>(slot);
  if (buffers.num_floats[index] < num_floats) {
    std::free(buffers.data[index]);
    buffers.data[index] = nullptr;
    buffers.num_floats[index] = 0;
    const std::int64_t rounded = (num_floats + 15) / 16 * 16;
    void* fresh = std::aligned_alloc(64, static_cast<std::size_t>(rounded) * sizeof(float));
    if (!fresh) throw std::bad_alloc();
    buffers.data[index] = static_cast<float*>(fresh);
    buffers.num_floats[index] = rounded;
  }
  return buffers.data[index];
}

}  // namespace pyft::cpu
