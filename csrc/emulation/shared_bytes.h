// Shared memory of a block: poisoned, and it knows whether something was written behind its end.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "emulation/block.h"
#include "pyft/error.h"

namespace pyft::emulation {

#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kCanaryBytes = 0;  // it watches the end itself, reads too
#else
constexpr std::size_t kCanaryBytes = 64;
#endif

class SharedBytes {
 public:
  SharedBytes(std::size_t bytes, std::size_t alignment) : bytes_(bytes) {
    void* memory = nullptr;
    if (posix_memalign(&memory, alignment, bytes + kCanaryBytes) != 0)
      fail(ErrorKind::kRuntime, "emulation: no memory for ", bytes, " bytes of shared memory");
    begin_.reset(static_cast<unsigned char*>(memory));
    std::memset(memory, kPoison, bytes + kCanaryBytes);
  }
  unsigned char* begin() const { return begin_.get(); }
  bool is_whole() const {
    for (std::size_t i = 0; i < kCanaryBytes; ++i) {
      if (begin_[bytes_ + i] != kPoison) return false;
    }
    return true;
  }

 private:
  struct Free {
    void operator()(unsigned char* memory) const { std::free(memory); }
  };
  std::size_t bytes_;
  std::unique_ptr<unsigned char[], Free> begin_;
};

}  // namespace pyft::emulation
